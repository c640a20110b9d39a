"""Client for the Kubernetes API with the pod's service account and one deadline for all requests.

Only a short-lived process imports this module, so that the idle agent does not keep TLS in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from runtimes.dataclass import dataclass, field
from runtimes.lazy_pattern import lazy_pattern

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LARGEST: Final = 1 << 20
_MOST_RECEIVED: Final = 2 * _LARGEST
_HOST: Final = lazy_pattern(r"[0-9A-Za-z.:-]+")
_PORT: Final = lazy_pattern(r"[0-9]{1,5}")
_TOKEN: Final = lazy_pattern(r"[!-~]+")
_LONGEST_NAME: Final = 253
_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = lazy_pattern(rf"{_LABEL}(\.{_LABEL})*")
_LONGEST_NUMBER: Final = 10
_LONGEST_WAIT: Final = 3600.0
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""What is accepted in response to a change: a whole Node may have hundreds of kilobytes."""
_UNAVAILABLE: Final = frozenset({
    http.client.TOO_MANY_REQUESTS,
    http.client.INTERNAL_SERVER_ERROR,  # etcd is electing a leader
    http.client.BAD_GATEWAY,
    http.client.SERVICE_UNAVAILABLE,
    http.client.GATEWAY_TIMEOUT,
})  # fmt: skip


class ApiError(Exception):
    """The API request failed. The message says why and never contains the token.

    `status` is the HTTP status of the response, 0 without one. `wait` is how many seconds the
    server asks to wait before another request (Retry-After), 0 if it does not.
    """

    def __init__(self, message: str, *, status: int = 0, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.wait = wait


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    target: str
    accept: str = "application/json"
    body: bytes | None = None
    content_type: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    status: int
    body: bytes
    wait: float


def get(api: Api, target: str) -> tuple[int, object]:
    """Return the status of a GET request, 200 or 404, and its JSON body, None if that is not JSON.

    Raises ApiError for every other status, and if there is no response: ApiUnavailable where a
    server that restarts or has too much to do answers so.
    """
    request = _Request(method="GET", target=target)
    response = _response(api, request, {http.client.OK, http.client.NOT_FOUND})
    return response.status, _json(response.body)


def send(
    api: Api, method: str, target: str, content: Mapping[str, Any], *, content_type: str
) -> object:
    """Send an object and return the metadata in the response; None if that is not JSON.

    `method` is POST or PATCH, `content_type` that of `content` (for a patch it says which kind of
    patch). Raises ApiError for every status but 200 and 201, and if there is no response. The
    server may have made the change nevertheless if the response did not arrive in time.
    """
    request = _Request(
        method=method,
        target=target,
        accept=_METADATA,
        body=json.dumps(content).encode(),
        content_type=content_type,
    )
    return _json(_response(api, request, {http.client.OK, http.client.CREATED}).body)


def path_of(
    api: Api, group: str, resource: str, name: str | None, *, namespace: str | None = None
) -> str:
    """Return the API path of an object in a namespace, by default the pod's.

    With None as the name it is the path of the collection. Raises ApiError if a name is invalid.
    """
    space = checked_name(api.namespace if namespace is None else namespace)
    tail = "" if name is None else f"/{checked_name(name)}"
    return f"{group}/namespaces/{space}/{resource}{tail}"


def checked_name(name: str) -> str:
    """Return the name of an object. Raises ApiError if it is no name of Kubernetes (RFC 1123)."""
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ApiError(f"{name[:80]!r} is not a valid Kubernetes name")
    return name


def _response(api: Api, request: _Request, expected: Collection[int]) -> _Response:
    """Return the response to a request. Raises ApiError if its status is not an expected one."""
    failed = f"{api} does not answer {request}"
    try:
        response = _exchange(api, request)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failure(api, failed, error) from error
    if response.status not in expected:
        phrase = http.client.responses.get(response.status, "")
        kind = ApiUnavailable if response.status in _UNAVAILABLE else ApiError
        raise kind(
            f"{api} answers {request} with {response.status} {phrase}".rstrip(),
            status=response.status,
            wait=response.wait,
        )
    if len(response.body) > _LARGEST:
        raise ApiError(f"{api} answers {request} with more than {_LARGEST} bytes")
    return response


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _failure(api: Api, failed: str, error: Exception) -> ApiError:
    """Return why there is no response.

    The server's text is never repeated: it may echo the request, with the token.
    """
    if isinstance(error, TimeoutError):
        return ApiError(f"{failed} within {api.timeout:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ApiError(f"{api}: certificate verification failed: {error.verify_message}")
    # The connection of a server that ends breaks, in HTTP or already in the TLS handshake.
    # Python 3.11 takes an end within the handshake for one that was announced.
    is_broken = isinstance(error, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))
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


def _exchange(api: Api, request: _Request) -> _Response:
    """Return the response to a request. Raises TimeoutError at the deadline.

    A timeout of the socket bounds one read only, so a server that sends a byte now and then would
    hold this process for as long as it likes: at the deadline the connection is shut down.
    """
    client = http.client.HTTPSConnection(
        api.host, api.port, timeout=api.left(), context=api.context
    )
    results: SimpleQueue[_Response | Exception] = SimpleQueue()

    def exchange() -> None:
        try:
            client.connect()
            api.left()  # no thread shuts down a connection that is made after the deadline
            results.put(_request(client, request, api.token))
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


def _request(client: http.client.HTTPSConnection, request: _Request, token: str) -> _Response:
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": request.accept,
        "Connection": "close",
    }
    if request.content_type:
        headers["Content-Type"] = request.content_type
    try:
        client.request(request.method, request.target, body=request.body, headers=headers)
        with client.getresponse() as response:
            return _Response(
                status=response.status,
                body=response.read(_LARGEST + 1),
                wait=_seconds(response.getheader("Retry-After", "")),
            )
    finally:
        client.close()


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header, bounded; 0 for a date or anything else."""
    is_number = text.isascii() and text.isdecimal() and len(text) < _LONGEST_NUMBER
    return min(float(text), _LONGEST_WAIT) if is_number else 0.0
