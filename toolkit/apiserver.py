"""One GET from the Kubernetes API, as the pod's service account, with one deadline for all of it.

Only a short-lived process imports this: TLS would stay in the memory of a waiting daemon.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_LARGEST: Final = 1 << 20
_HOST: Final = re.compile(r"[0-9A-Za-z.:-]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_TOKEN: Final = re.compile(r"[!-~]+")


class Unanswered(Exception):
    """The API did not answer the question; the message says why, and never holds the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Where the API is, who asks, and until when."""

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
        """Return the seconds until the deadline. Raises TimeoutError where there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def find(environment: Mapping[str, str], account: Path, *, timeout: float) -> Api:
    """Read what kubelet tells a pod about the API, and its service account; the `timeout` begins here.

    Raises Unanswered where a part of it is missing or is no such thing.
    """
    deadline = time.monotonic() + timeout
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get("KUBERNETES_SERVICE_PORT", "")
    if not (_HOST.fullmatch(host) and _PORT.fullmatch(port) and 0 < int(port) <= 65535):
        raise Unanswered(f"KUBERNETES_SERVICE_HOST and _PORT name no API server: {host!r}, {port!r}")
    token = _text(account / "token")
    # http.client refuses other characters with a message that has the token in it.
    if not _TOKEN.fullmatch(token):
        raise Unanswered(f"{account}/token holds no token")
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
    """GET what may be there: return 200 or 404, and the JSON of the answer, None where it is none.

    Raises Unanswered for every other status, and where there is no answer.
    """
    failed = f"{api} does not answer GET {target}"
    try:
        status, body = _exchange(api, target)
    except TimeoutError as error:
        raise Unanswered(f"{failed} within {api.timeout:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise Unanswered(f"{api} is not trusted: {error.verify_message}") from error
    except http.client.HTTPException as error:
        # Neither here nor below are the server's words repeated: they may be what it heard, with the token.
        raise Unanswered(f"{failed} in HTTP: {type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise Unanswered(f"{failed}: {error}") from error
    if status not in {http.client.OK, http.client.NOT_FOUND}:
        phrase = http.client.responses.get(status, "")
        raise Unanswered(f"{api} answers GET {target} with {status} {phrase}".rstrip())
    if len(body) > _LARGEST:
        raise Unanswered(f"{api} answers GET {target} with more than {_LARGEST} bytes")
    try:
        return status, json.loads(body)
    except (ValueError, RecursionError):
        return status, None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unanswered(f"there is no service account: {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unanswered(f"{path} is no text") from error


def _context(authority: Path) -> ssl.SSLContext:
    # Not create_default_context: it is strict since Python 3.13, and the certificates of many clusters have
    # no key identifiers. An authority that is below another one is trusted alone, as Go does.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=authority)
    except ssl.SSLError as error:
        raise Unanswered(f"{authority} holds no certificate") from error
    except OSError as error:
        raise Unanswered(f"there is no service account: {authority}: {error.strerror}") from error
    return context


def _exchange(api: Api, target: str) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {api.token}", "Accept": "application/json", "Connection": "close"}
    client = http.client.HTTPConnection(api.host, api.port)
    try:
        client.sock = _connect(api)
        client.request("GET", target, headers=headers)
        with client.getresponse() as answer:
            return answer.status, answer.read(_LARGEST + 1)
    finally:
        client.close()


def _connect(api: Api) -> ssl.SSLSocket:
    api.context.sslsocket_class = _bounded(api)
    with _reach(api) as plain:
        plain.settimeout(api.left())
        return api.context.wrap_socket(plain, server_hostname=api.host)


def _reach(api: Api) -> socket.socket:
    # create_connection alone would give the whole time to each address of a name.
    failure = OSError(f"{api.host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(api.host, api.port, type=socket.SOCK_STREAM):
        client = socket.socket(family, kind, protocol)
        try:
            client.settimeout(api.left())
            client.connect(address)
        except OSError as error:
            client.close()
            failure = error
        else:
            return client
    raise failure


def _bounded(api: Api) -> type[ssl.SSLSocket]:
    """Return a class of sockets that a server cannot hold longer by sending a byte now and then."""

    class Bounded(ssl.SSLSocket):
        def send(self, data: ReadableBuffer, flags: int = 0) -> int:
            self.settimeout(api.left())
            return super().send(data, flags)

        def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
            self.settimeout(api.left())
            return super().recv_into(buffer, nbytes, flags)

    return Bounded
