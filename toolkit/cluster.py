"""Whether this pod's DaemonSet is being uninstalled, as the Kubernetes API says when the pod is ended.

An upgrade, a drain and a reboot send the same SIGTERM as an uninstallation, and only that is a reason to
revert a node. So LEAVES needs the API's own words about this very DaemonSet; whatever goes wrong is UNKNOWN.
"""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from toolkit import apiserver
from toolkit.apiserver import Api, Unanswered

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LONGEST_NAME: Final = 253
_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_GENERATED: Final = re.compile("-[bcdfghjklmnpqrstvwxz2456789]{5}")
"""What a controller of Kubernetes' adds to its own name to name a pod."""


class Fate(StrEnum):
    """What becomes of the DaemonSet that this pod is of."""

    STAYS = "stays"
    LEAVES = "leaves"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A fate, and how it is known or why it is not: one sentence for the log."""

    fate: Fate
    why: str


def fate(
    daemonset: str,
    *,
    timeout: float,
    environment: Mapping[str, str] = os.environ,
    account: Path = _ACCOUNT,
) -> Verdict:
    """Ask the Kubernetes API what becomes of a DaemonSet; without a name, of the one that owns this pod.

    `timeout`, in seconds, is for everything but the resolution of a host's name.
    Having no answer is a verdict too: nothing is raised for it.
    """
    try:
        api = apiserver.find(environment, account, timeout=timeout)
        if daemonset:
            return _judge(api, daemonset, owner=None)
        name, uid = _owner(api, _pod(environment))
        return _judge(api, name, owner=uid)
    except Unanswered as error:
        return Verdict(fate=Fate.UNKNOWN, why=str(error))


def is_ours(daemonset: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this pod's name says that it is of a DaemonSet; without a name it is of none."""
    pod = _pod(environment)
    generated = pod.removeprefix(daemonset)
    return bool(daemonset) and generated != pod and _GENERATED.fullmatch(generated) is not None


def _pod(environment: Mapping[str, str]) -> str:
    return environment.get("POD_NAME") or environment.get("HOSTNAME", "")


def _judge(api: Api, name: str, *, owner: str | None) -> Verdict:
    """Look at a DaemonSet; `owner` is the uid of the one that this pod is of. Raises Unanswered."""
    target = _target(api, "/apis/apps/v1", "daemonsets", name)
    subject = f"the DaemonSet {api.namespace}/{name}"
    status, answer = apiserver.get(api, target)
    if status == http.client.NOT_FOUND:
        if not _is_gone(answer, name):
            raise Unanswered(f"{api} answers GET {target} with a 404 that is not about {subject}")
        return Verdict(fate=Fate.LEAVES, why=f"{subject} is gone")
    found = _metadata(api, target, answer, kind="DaemonSet", name=name)
    if isinstance(found.get("deletionTimestamp"), str):
        # As of `kubectl delete --cascade=orphan`: the pods stay, so this one is ended for another reason.
        if "orphan" in _list(found.get("finalizers")):
            return Verdict(fate=Fate.STAYS, why=f"{subject} is being deleted without its pods")
        return Verdict(fate=Fate.LEAVES, why=f"{subject} is being deleted")
    if owner is not None and found["uid"] != owner:
        return Verdict(fate=Fate.STAYS, why=f"{subject} was made anew")
    return Verdict(fate=Fate.STAYS, why=f"{subject} is there")


def _owner(api: Api, pod: str) -> tuple[str, str]:
    """Return the name and the uid of the DaemonSet that a pod is of. Raises Unanswered."""
    target = _target(api, "/api/v1", "pods", pod)
    status, answer = apiserver.get(api, target)
    if status == http.client.NOT_FOUND:
        raise Unanswered(f"{api} answers GET {target} with 404 Not Found")
    found = _metadata(api, target, answer, kind="Pod", name=pod)
    for owner in map(_dict, _list(found.get("ownerReferences"))):
        name, uid = owner.get("name"), owner.get("uid")
        is_controller = owner.get("controller") is True and owner.get("kind") == "DaemonSet"
        if is_controller and isinstance(name, str) and isinstance(uid, str):
            return name, uid
    raise Unanswered(f"the pod {api.namespace}/{pod} is of no DaemonSet")


def _target(api: Api, group: str, resource: str, name: str) -> str:
    """Return the path of an object. Raises Unanswered where Kubernetes takes no such names."""
    for part in (api.namespace, name):
        if len(part) > _LONGEST_NAME or not _NAME.fullmatch(part):
            raise Unanswered(f"{part[:80]!r} is no name that Kubernetes takes")
    return f"{group}/namespaces/{quote(api.namespace, safe='')}/{resource}/{quote(name, safe='')}"


def _is_gone(answer: object, name: str) -> bool:
    """Tell whether the API says NotFound of this DaemonSet: a proxy and a wrong path say 404 too."""
    said = _dict(answer)
    about = _dict(said.get("details"))
    is_status = (said.get("kind"), said.get("reason")) == ("Status", "NotFound")
    return is_status and (about.get("kind"), about.get("name")) == ("daemonsets", name)


def _metadata(api: Api, target: str, answer: object, *, kind: str, name: str) -> dict[str, Any]:
    """Return the metadata of the object that was asked for. Raises Unanswered where it is another one."""
    found = _dict(_dict(answer).get("metadata"))
    told = (_dict(answer).get("kind"), found.get("name"), found.get("namespace"))
    if told != (kind, name, api.namespace) or not isinstance(found.get("uid"), str):
        raise Unanswered(f"{api} answers GET {target} with something that is not what was asked for")
    return found


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
