"""The Kubernetes API as a small, real HTTPS server: certificates by openssl, answers as it gives them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

# What a server does with a connection; it ends when the client hangs up, at the latest.
Speech: TypeAlias = Callable[[socket.socket], None]
TOKEN: Final = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"  # noqa: S105
DAEMONSET: Final = "/apis/apps/v1/namespaces/gpu/daemonsets/toolkit"
POD: Final = "/api/v1/namespaces/gpu/pods/toolkit-x7k2p"
UID: Final = "0e1f5b7c-5f0c-4a52-9a0f-3c86a6c3f2f1"
A_CONFIG: Final = "[req]\ndistinguished_name = name\n[name]\n"


# Certificates


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority by openssl's command line; `path` is its certificate."""

    home: Path
    name: str

    @classmethod
    def first(cls, home: Path, name: str) -> Authority:
        """Make an authority of its own, in a directory that has none of openssl's settings yet."""
        (home / "openssl.cnf").write_text(A_CONFIG, encoding="utf-8")
        _openssl(home, name, "basicConstraints=critical,CA:TRUE")
        return cls(home, name)

    @property
    def path(self) -> Path:
        return self.home / f"{self.name}.pem"

    def authority(self, name: str) -> Authority:
        """Make an authority below this one."""
        _openssl(self.home, name, "basicConstraints=critical,CA:TRUE", by=self.name)
        return Authority(self.home, name)

    def server(self, name: str, *alternatives: str) -> Path:
        """Make a server's certificate and key, both in one file."""
        _openssl(self.home, name, f"subjectAltName={','.join(alternatives)}", by=self.name)
        both = self.home / f"{name}.both.pem"
        both.write_bytes(b"".join((self.home / f"{name}.{end}").read_bytes() for end in ("key", "pem")))
        return both


def _openssl(home: Path, name: str, extension: str, *, by: str | None = None) -> None:
    signer = [] if by is None else ["-CA", f"{by}.pem", "-CAkey", f"{by}.key"]
    command = [
        "openssl", "req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-pkeyopt",
        "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
        "-addext", extension, "-keyout", f"{name}.key", "-out", f"{name}.pem", *signer,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


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
    if shutil.which("openssl") is None:
        # As for real runtimes: where all of them are required, nothing is skipped.
        give_up = pytest.fail if os.environ.get("REQUIRE_REAL_RUNTIMES") == "1" else pytest.skip
        give_up("openssl is not installed")
    (home / "openssl.cnf").write_text(A_CONFIG, encoding="utf-8")
    for name in ("root", "another"):
        _openssl(home, name, "basicConstraints=critical,CA:TRUE")
    root = Authority(home, "root")
    below = root.authority("below")
    here = ("IP:127.0.0.1", "IP:::1", "DNS:localhost")
    return Certificates(
        root=root,
        below=below,
        good=root.server("good", *here),
        by_below=below.server("by-below", *here),
        by_another=Authority(home, "another").server("by-another", *here),
        of_another=root.server("of-another", "IP:127.0.0.2", "DNS:kubernetes.default.svc"),
    )


# Servers


@contextlib.contextmanager
def serving(speech: Speech, certificate: Path | None, *, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve one connection after another in a thread, over TLS where there is a certificate."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    trust = context(certificate) if certificate else None

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:
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
            thread.join(20)
            assert not thread.is_alive()


def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@dataclass(slots=True)
class Api:
    """The API by http.server: a status and a body for each path, and what was asked."""

    answers: Mapping[str, tuple[int, object]]
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __call__(self, client: socket.socket) -> None:
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.asked.append((self.path, dict(self.headers)))
                status, said = api.answers[self.path]
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
    shared = {"name": name, "namespace": "gpu", "uid": UID, "resourceVersion": "8731", "generation": 1}
    return {"kind": kind, "apiVersion": "apps/v1", "metadata": shared | metadata, "spec": {}, "status": {}}


def daemonset(**metadata: Any) -> dict[str, Any]:
    return object_of("DaemonSet", "toolkit", **metadata)


def owner(**fields: Any) -> dict[str, Any]:
    shared = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "toolkit", "uid": UID}
    return shared | {"controller": True, "blockOwnerDeletion": True} | fields


def pod(*owners: object) -> dict[str, Any]:
    return object_of("Pod", "toolkit-x7k2p", ownerReferences=list(owners))


def status_of(code: int, reason: str, name: str = "toolkit", resource: str = "daemonsets") -> dict[str, Any]:
    """Return a failure as apimachinery writes it."""
    message = f'{resource}.apps "{name}" not found'
    details = {"name": name, "group": "apps", "kind": resource}
    shared: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return shared | {"message": message, "reason": reason, "details": details, "code": code}


GONE: Final = (404, status_of(404, "NotFound"))


def make_account(home: Path, certificates: Certificates) -> Path:
    """Make a service account as kubelet mounts it; return its directory."""
    home.mkdir()
    (home / "token").write_text(TOKEN, encoding="utf-8")
    (home / "namespace").write_text("gpu", encoding="utf-8")
    shutil.copy(certificates.root.path, home / "ca.crt")
    return home
