"""The Kubernetes API as a small, real HTTPS server, with certificates made for each test run."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import shutil
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

# What a server does with a connection; it ends when the client hangs up, at the latest.
Speech: TypeAlias = Callable[[socket.socket], None]
TOKEN: Final = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"  # noqa: S105
DAEMONSET: Final = "/apis/apps/v1/namespaces/gpu/daemonsets/toolkit"
POD: Final = "/api/v1/namespaces/gpu/pods/toolkit-x7k2p"
UID: Final = "0e1f5b7c-5f0c-4a52-9a0f-3c86a6c3f2f1"
_DAY: Final = datetime.timedelta(days=1)
_IS_AUTHORITY: Final = x509.BasicConstraints(ca=True, path_length=None)
_MAY_SIGN: Final = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False,
    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
    decipher_only=False,
)  # fmt: skip


# Certificates


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority whose files lie in a directory; `path` is its certificate."""

    home: Path
    name: str

    @classmethod
    def first(cls, home: Path, name: str) -> Authority:
        """Make an authority of its own, signed by itself."""
        _certify(home, name, _IS_AUTHORITY)
        return cls(home, name)

    @property
    def path(self) -> Path:
        return self.home / f"{self.name}.pem"

    def authority(self, name: str) -> Authority:
        """Make an authority below this one."""
        _certify(self.home, name, _IS_AUTHORITY, by=self.name)
        return Authority(self.home, name)

    def server(self, name: str, *alternatives: str) -> Path:
        """Make a server's certificate and key, both in one file.

        `alternatives` are the names that the server goes by, as `IP:ADDRESS` or `DNS:NAME`.
        """
        _certify(
            self.home,
            name,
            x509.SubjectAlternativeName([*map(_general, alternatives)]),
            by=self.name,
        )
        both = self.home / f"{name}.both.pem"
        both.write_bytes(
            b"".join((self.home / f"{name}.{end}").read_bytes() for end in ("key", "pem"))
        )
        return both


def _general(alternative: str) -> x509.GeneralName:
    kind, _, name = alternative.partition(":")
    return x509.IPAddress(ipaddress.ip_address(name)) if kind == "IP" else x509.DNSName(name)


def _certify(
    home: Path, name: str, extension: x509.ExtensionType, *, by: str | None = None
) -> None:
    """Write NAME.key and NAME.pem, signed by another name's key or by its own.

    Python 3.13 verifies strictly (ssl.VERIFY_X509_STRICT), so both key identifiers are needed.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    (home / f"{name}.key").write_bytes(private_bytes(key))
    signer = key if by is None else _key(home / f"{by}.key")
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(_common_name(by or name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(extension, critical=extension is _IS_AUTHORITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if extension is _IS_AUTHORITY:
        builder = builder.add_extension(_MAY_SIGN, critical=True)
    certificate = builder.sign(signer, hashes.SHA256())
    (home / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found


def private_bytes(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a private key in PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    root: Authority
    below: Authority
    good: Path
    by_below: Path
    by_another: Path
    of_another: Path


def make_certificates(home: Path) -> Certificates:
    """Make authorities and servers' certificates below a directory."""
    root = Authority.first(home, "root")
    below = root.authority("below")
    here = ("IP:127.0.0.1", "IP:::1", "DNS:localhost")
    return Certificates(
        root=root,
        below=below,
        good=root.server("good", *here),
        by_below=below.server("by-below", *here),
        by_another=Authority.first(home, "another").server("by-another", *here),
        of_another=root.server("of-another", "IP:127.0.0.2", "DNS:kubernetes.default.svc"),
    )


# Servers


@contextlib.contextmanager
def serving(speech: Speech, certificate: Path | None, *, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve one connection after another in a thread, over TLS where there is a certificate."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    trust = context(certificate) if certificate else None
    # What a client that hung up did not read may wait until the timeout, so it is ended here.
    open_connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client, client.dup() as connection:
                open_connections.append(connection)
                client.settimeout(20)
                if trust is None:
                    speech(client)
                else:
                    with trust.wrap_socket(client, server_side=True) as secure:
                        speech(secure)

    with socket.create_server((host, 0), family=family) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in open_connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            assert not thread.is_alive()


def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@dataclass(slots=True)
class Api:
    """The API by http.server: a status and a body for each path, and what was asked.

    The key of a request that changes something is its method and its path; `sent` are its bodies.
    """

    answers: Mapping[str, tuple[int, object]]
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, client: socket.socket) -> None:
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(self.path)

            def do_PATCH(self) -> None:
                self.take()

            def do_POST(self) -> None:
                self.take()

            def take(self) -> None:
                target = f"{self.command} {self.path}"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                api.sent.append((target, json.loads(body)))
                self.answer(target)

            def answer(self, target: str) -> None:
                api.asked.append((self.path, dict(self.headers)))
                status, said = api.answers[target]
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in api.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        Handler(client, ("", 0), socketserver.BaseServer(("", 0), Handler))


def object_of(kind: str, name: str, **metadata: Any) -> dict[str, Any]:
    shared = {
        "name": name,
        "namespace": "gpu",
        "uid": UID,
        "resourceVersion": "8731",
        "generation": 1,
    }
    return {
        "kind": kind,
        "apiVersion": "apps/v1",
        "metadata": shared | metadata,
        "spec": {},
        "status": {},
    }


def daemonset(**metadata: Any) -> dict[str, Any]:
    return object_of("DaemonSet", "toolkit", **metadata)


def owner(**fields: Any) -> dict[str, Any]:
    shared = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "toolkit", "uid": UID}
    return shared | {"controller": True, "blockOwnerDeletion": True} | fields


def pod(*owners: object) -> dict[str, Any]:
    return object_of("Pod", "toolkit-x7k2p", ownerReferences=list(owners))


def status_of(
    code: int, reason: str, name: str = "toolkit", resource: str = "daemonsets"
) -> dict[str, Any]:
    """Return a failure as apimachinery writes it."""
    message = f'{resource}.apps "{name}" not found'
    details = {"name": name, "group": "apps", "kind": resource}
    shared: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
    }
    return shared | {"message": message, "reason": reason, "details": details, "code": code}


GONE: Final = (404, status_of(404, "NotFound"))


def make_account(home: Path, certificates: Certificates) -> Path:
    """Make a service account as kubelet mounts it; return its directory."""
    home.mkdir()
    (home / "token").write_text(TOKEN, encoding="utf-8")
    (home / "namespace").write_text("gpu", encoding="utf-8")
    shutil.copy(certificates.root.path, home / "ca.crt")
    return home
