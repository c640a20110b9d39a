"""Look up in the Kubernetes API whether this pod's DaemonSet is being deleted.

An upgrade, a drain and a reboot send the same SIGTERM as an uninstallation, but only the last one
may revert the node. So DELETED requires the API's answer about exactly this DaemonSet; any failure
means UNKNOWN.
"""

from __future__ import annotations

import http.client
import os
import random
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from toolkit.kube import apiserver
from toolkit.kube.apiserver import Api, ApiError, ApiUnavailable

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_GENERATED: Final = lazy_pattern("-[bcdfghjklmnpqrstvwxz2456789]{5}")
"""The suffix that a Kubernetes controller adds to its own name to name a pod."""
PAUSES: Final = (0.5, 1.0, 2.0)
"""In seconds, before a lookup is repeated; each is spread from its half to one and a half of it."""


class DaemonSetState(StrEnum):
    """The state of the DaemonSet that owns this pod."""

    PRESENT = "stays"
    DELETED = "leaves"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The state of a DaemonSet, and the reason for it or for not knowing it, as a log message."""

    state: DaemonSetState
    why: str


def look_up(
    daemonset: str,
    *,
    timeout: float,
    environment: Mapping[str, str] = os.environ,
    account: Path = _ACCOUNT,
) -> Lookup:
    """Return the state of a DaemonSet in the Kubernetes API; without a name, of this pod's owner.

    `timeout`, in seconds, covers everything except the resolution of a host name. If the API server
    is unavailable, the lookup is repeated at most three times. If it does not answer, the state is
    UNKNOWN; nothing is raised.
    """
    attempts = 1
    try:
        api = apiserver.find(environment, account, timeout=timeout)
        while True:
            try:
                return _lookup_of(api, daemonset, _pod(environment))
            except ApiUnavailable:
                if not _pause(api, attempts):
                    raise
                attempts += 1
    except ApiError as error:
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        return Lookup(state=DaemonSetState.UNKNOWN, why=f"{error}{tried}")


def is_own(daemonset: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this pod's name is one that the DaemonSet generates; False without a name."""
    pod = _pod(environment)
    generated = pod.removeprefix(daemonset)
    return bool(daemonset) and generated != pod and _GENERATED.fullmatch(generated) is not None


def _pause(api: Api, attempts: int) -> bool:
    """Wait before the next attempt; return False, without waiting, if there is to be none.

    The pods of many nodes may have been refused at the same moment. The random part keeps them from
    coming back at the same moment.
    """
    if attempts > len(PAUSES):
        return False
    seconds = PAUSES[attempts - 1] * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
    if seconds >= api.deadline - time.monotonic():
        return False
    time.sleep(seconds)
    return True


def _pod(environment: Mapping[str, str]) -> str:
    return environment.get("POD_NAME") or environment.get("HOSTNAME", "")


def _lookup_of(api: Api, daemonset: str, pod: str) -> Lookup:
    """Return the state of a DaemonSet; without a name, of the pod's owner. Raises ApiError."""
    if daemonset:
        return _lookup(api, daemonset, owner=None)
    name, uid = _owner(api, pod)
    return _lookup(api, name, owner=uid)


def _lookup(api: Api, name: str, *, owner: str | None) -> Lookup:
    """Return the state of a DaemonSet.

    `owner` is the UID of the one that owns this pod, None if it is not known. Raises ApiError.
    """
    target = apiserver.path_of(api, "/apis/apps/v1", "daemonsets", name)
    subject = f"the DaemonSet {api.namespace}/{name}"
    status, answer = apiserver.get(api, target)
    if status == http.client.NOT_FOUND:
        if not _is_gone(answer, name):
            raise ApiError(f"{api} answers GET {target} with a 404 that is not about {subject}")
        return Lookup(state=DaemonSetState.DELETED, why=f"{subject} is gone")
    result = _metadata(api, target, answer, kind="DaemonSet", name=name)
    if isinstance(result.get("deletionTimestamp"), str):
        # `kubectl delete --cascade=orphan` keeps the pods, so this pod is being stopped for another
        # reason.
        if "orphan" in _list(result.get("finalizers")):
            return Lookup(
                state=DaemonSetState.PRESENT, why=f"{subject} is being deleted without its pods"
            )
        return Lookup(state=DaemonSetState.DELETED, why=f"{subject} is being deleted")
    if owner is not None and result["uid"] != owner:
        return Lookup(state=DaemonSetState.PRESENT, why=f"{subject} was recreated")
    return Lookup(state=DaemonSetState.PRESENT, why=f"{subject} exists")


def _owner(api: Api, pod: str) -> tuple[str, str]:
    """Return the name and the UID of the DaemonSet that owns a pod. Raises ApiError."""
    target = apiserver.path_of(api, "/api/v1", "pods", pod)
    status, answer = apiserver.get(api, target)
    if status == http.client.NOT_FOUND:
        raise ApiError(f"{api} answers GET {target} with 404 Not Found")
    result = _metadata(api, target, answer, kind="Pod", name=pod)
    for owner in map(_dict, _list(result.get("ownerReferences"))):
        name, uid = owner.get("name"), owner.get("uid")
        is_controller = owner.get("controller") is True and owner.get("kind") == "DaemonSet"
        if is_controller and isinstance(name, str) and isinstance(uid, str):
            return name, uid
    raise ApiError(f"the pod {api.namespace}/{pod} does not belong to a DaemonSet")


def _is_gone(answer: object, name: str) -> bool:
    """Return whether a 404 is NotFound for this DaemonSet; a proxy or a wrong path send 404 too."""
    status = _dict(answer)
    details = _dict(status.get("details"))
    is_not_found = (status.get("kind"), status.get("reason")) == ("Status", "NotFound")
    return is_not_found and (details.get("kind"), details.get("name")) == ("daemonsets", name)


def _metadata(api: Api, target: str, answer: object, *, kind: str, name: str) -> dict[str, Any]:
    """Return the requested object's metadata. Raises ApiError if the response is another object."""
    result = _dict(_dict(answer).get("metadata"))
    identity = (_dict(answer).get("kind"), result.get("name"), result.get("namespace"))
    if identity != (kind, name, api.namespace) or not isinstance(result.get("uid"), str):
        raise ApiError(f"{api} answers GET {target} with something other than the requested object")
    return result


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
