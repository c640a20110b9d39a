"""Client for GET requests to the Kubernetes API with the pod's service account and one deadline.

Only a short-lived process imports this module, so that the idle agent does not keep TLS in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LARGEST: Final = 1 << 20
_MOST_RECEIVED: Final = 2 * _LARGEST
_HOST: Final = re.compile(r"[0-9A-Za-z.:-]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_TOKEN: Final = re.compile(r"[!-~]+")
_UNAVAILABLE: Final = frozenset({
    http.client.TOO_MANY_REQUESTS,
    http.client.INTERNAL_SERVER_ERROR,  # etcd is electing a leader
    http.client.BAD_GATEWAY,
    http.client.SERVICE_UNAVAILABLE,
    http.client.GATEWAY_TIMEOUT,
})  # fmt: skip


class ApiError(Exception):
    """The API request failed. The message says why and never contains the token."""


class ApiUnavailable(ApiError):
    """The connection is refused or broken, or the server is overloaded: a retry may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The API server's address, the service account, and the deadline (monotonic, in seconds)."""

    host: str
    port: int
    namespace: str
    token: str = field(repr=False)
    context: ssl.SSLContext
    timeout: float
    deadline: float

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError if it has passed."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


def find(environment: Mapping[str, str], account: Path, *, timeout: float) -> Api:
    """Return the API server and service account from the pod's environment and mounted files.

    `timeout`, in seconds, begins here and covers all later requests. Raises ApiError if a part is
    missing or invalid.
    """
    deadline = time.monotonic() + timeout
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get(
        "KUBERNETES_SERVICE_PORT", ""
    )
    if not (_HOST.fullmatch(host) and _PORT.fullmatch(port) and 0 < int(port) <= 65535):
        raise ApiError(
            f"KUBERNETES_SERVICE_HOST and _PORT are not set or not valid: {host!r}, {port!r}"
        )
    token = _text(account / "token")
    # http.client rejects other characters with a message that contains the token.
    if not _TOKEN.fullmatch(token):
        raise ApiError(f"{account}/token does not contain a token")
    return Api(
        host=host,
        port=int(port),
        namespace=_text(account / "namespace"),
        token=token,
        context=_context(account / "ca.crt"),
        timeout=timeout,
        deadline=deadline,
    )


def get(api: Api, target: str) -> tuple[int, object]:
    """Return the status of a GET request, 200 or 404, and its JSON body, None if that is not JSON.

    Raises ApiError for every other status, and if there is no response: ApiUnavailable where a
    server that restarts or has too much to do answers so.
    """
    failed = f"{api} does not answer GET {target}"
    try:
        status, body = _exchange(api, target)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failure(api, failed, error) from error
    if status not in {http.client.OK, http.client.NOT_FOUND}:
        phrase = http.client.responses.get(status, "")
        kind = ApiUnavailable if status in _UNAVAILABLE else ApiError
        raise kind(f"{api} answers GET {target} with {status} {phrase}".rstrip())
    if len(body) > _LARGEST:
        raise ApiError(f"{api} answers GET {target} with more than {_LARGEST} bytes")
    try:
        return status, json.loads(body)
    except (ValueError, RecursionError):
        return status, None


def _failure(api: Api, failed: str, error: Exception) -> ApiError:
    """Return why there is no response.

    The server's text is never repeated: it may echo the request, with the token.
    """
    if isinstance(error, TimeoutError):
        return ApiError(f"{failed} within {api.timeout:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ApiError(f"{api}: certificate verification failed: {error.verify_message}")
    # The connection of a server that ends breaks, in HTTP or already in the TLS handshake.
    is_broken = isinstance(error, (ConnectionError, ssl.SSLEOFError))
    kind = ApiUnavailable if is_broken else ApiError
    if isinstance(error, http.client.HTTPException):
        return kind(f"{failed} in HTTP: {type(error).__name__}")
    return kind(f"{failed}: {error}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ApiError(f"cannot read the service account: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ApiError(f"{path} is not UTF-8 text") from error


def _context(authority: Path) -> ssl.SSLContext:
    # create_default_context sets VERIFY_X509_STRICT since Python 3.13, but the certificates of many
    # clusters have no key identifiers. A partial chain lets an intermediate authority be trusted by
    # itself, as in Go.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Socket
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=authority)
    except ssl.SSLError as error:
        raise ApiError(f"{authority} does not contain a certificate") from error
    except OSError as error:
        raise ApiError(f"cannot read the service account: {authority}: {error.strerror}") from error
    return context


class _Socket(ssl.SSLSocket):
    """A TLS connection that receives a limited number of bytes.

    http.client reads a chunk of -1 bytes until the end of the connection, and ignores any number of
    headers.
    """

    _received = 0

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        size = super().recv_into(buffer, nbytes, flags)
        self._received += size
        if self._received > _MOST_RECEIVED:
            raise OSError(f"the response is larger than {_MOST_RECEIVED} bytes")
        return size


def _exchange(api: Api, target: str) -> tuple[int, bytes]:
    """Return the status and the body of a response. Raises TimeoutError at the deadline.

    A timeout of the socket bounds one read only, so a server that sends a byte now and then would
    hold this process for as long as it likes: at the deadline the connection is shut down.
    """
    client = http.client.HTTPSConnection(
        api.host, api.port, timeout=api.left(), context=api.context
    )
    results: SimpleQueue[tuple[int, bytes] | Exception] = SimpleQueue()

    def exchange() -> None:
        try:
            client.connect()
            api.left()  # nobody shuts down a connection that is made after the deadline
            results.put(_request(client, target, api.token))
        except Exception as error:  # noqa: BLE001  # it is raised where the result is waited for
            client.close()
            results.put(error)

    try:
        Thread(target=exchange, daemon=True).start()
    except RuntimeError as error:  # pids.max is reached
        raise OSError("can't start new thread") from error
    try:
        result = results.get(timeout=api.left())
    except (Empty, TimeoutError):
        if client.sock is not None:
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result


def _request(client: http.client.HTTPSConnection, target: str, token: str) -> tuple[int, bytes]:
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json",
        "Connection": "close",
    }
    try:
        client.request("GET", target, headers=headers)
        with client.getresponse() as response:
            return response.status, response.read(_LARGEST + 1)
    finally:
        client.close()
