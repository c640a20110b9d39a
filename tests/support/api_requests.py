"""Requests to an API server, by its own metrics and by its audit log, which knows the clients."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.cluster import ControlPlane

PROGRAM: Final = "this program"
WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # A watch is logged when it begins and when it ends: as one request, when it begins.
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
_COUNTED: Final = re.compile(r"^apiserver_request_total\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'([a-z_]+)="([^"]*)"')
_CLIENTS: Final = (
    ("kube-apiserver/", "API server itself"),
    ("kube-controller-manager/", "controllers"),
    ("kube-scheduler/", "scheduler"),
    ("kwok/", "kubelets"),
    ("Helm/", "helm"),
    ("helm/", "helm"),
    ("kubectl/", "kubectl"),
)
"""How the clients are known by what they call themselves. This program does not say its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that was answered; `at` is its time in whole seconds, as text."""

    client: str
    verb: str
    resource: str
    code: int
    at: str

    @property
    def is_write(self) -> bool:
        """Return whether it changed an object."""
        return self.verb in WRITES and self.code < 300


def audit_options(home: Path) -> tuple[str, ...]:
    """Return the options that make an API server log each request below a directory.

    The file is not rotated, as it is by default at 100 MB: it is read on where it was read last.
    """
    policy = home / "audit.yaml"
    policy.write_text(yaml.safe_dump(_POLICY), encoding="utf-8")
    return (
        f"--audit-policy-file={policy}",
        f"--audit-log-path={_log(home)}",
        "--audit-log-maxsize=100000",
    )


class AuditLog:
    """The audit log of a control plane, read on from where it was read last."""

    def __init__(self, home: Path) -> None:
        self._path = _log(home)
        self._offset = 0

    def new(self) -> list[Request]:
        """Return the requests that were answered since the last call."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        # The last line may not be written whole.
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [*_requests(data)]


def total(plane: ControlPlane) -> Counter[tuple[str, str]]:
    """Return how many requests the API server has answered since it began, by verb and resource.

    Of watches it counts those that ended. Raises NodeError if it does not answer.
    """
    text = plane.kubectl("get", "--raw=/metrics").stdout
    counted: Counter[tuple[str, str]] = Counter()
    for labels, value in _COUNTED.findall(text):
        named = dict(_LABEL.findall(labels))
        resource = "/".join(filter(None, (named["resource"], named["subresource"])))
        counted[named["verb"], resource] += int(float(value))
    return counted


def _log(home: Path) -> Path:
    return home / "audit.json"


def _requests(data: bytes) -> Iterator[Request]:
    for line in data.splitlines():
        entry = json.loads(line)
        is_watch = entry["verb"] == "watch"
        if entry["stage"] != ("ResponseStarted" if is_watch else "ResponseComplete"):
            continue
        named = entry.get("objectRef", {})
        resource = "/".join(filter(None, (named.get("resource", ""), named.get("subresource", ""))))
        yield Request(
            client=_client(entry),
            verb=entry["verb"],
            resource=resource or entry["requestURI"].partition("?")[0],
            code=entry.get("responseStatus", {}).get("code", 0),
            at=entry["requestReceivedTimestamp"][:19],
        )


def _client(entry: dict[str, Any]) -> str:
    agent = entry.get("userAgent", "")
    for prefix, name in _CLIENTS:
        if agent.startswith(prefix):
            return name
    is_account = entry["user"]["username"].startswith("system:serviceaccount:")
    return PROGRAM if is_account and not agent else agent or "unknown"
