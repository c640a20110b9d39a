"""The kustomize overlays and the Jobs below deploy/, made from what the chart renders.

An overlay holds the difference between the plain manifests and what the chart renders for one
runtime or distribution, so that neither can drift from the chart. A Job is the DaemonSet's pod with
a command that ends, for one node.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from runtimes.distributions import DISTRIBUTIONS, Distribution
from tests.support import helm

Object: TypeAlias = dict[str, Any]

OVERLAYS: Final = helm.ROOT / "deploy/overlays"
JOBS: Final = helm.ROOT / "deploy/jobs"
DEFAULT: Final = "containerd"
"""The row that the plain manifests are for."""
KUBERNETES: Final = "--kube-version=1.30.0"
"""helm's option for the version that all of this is for (docs/install.md)."""
PLACEHOLDER: Final = "@NODE@"
"""What stands for the node's name in a Job."""

_HEAD: Final = "# Rendered from deploy/helm/nvidia-toolkit by `make generate`; change that.\n"
_MERGE_KEYS: Final = {
    "initContainers": "name",
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""The lists that a strategic merge patch merges, each by the key of its items."""
_COMMANDS: Final = {"install": ("run", "--no-daemon"), "revert": ("revert",)}
_OF_A_POD: Final = frozenset({
    "POD_NAME", "POD_NAMESPACE", "POD_UID", "NODE_NAME", "TOOLKIT_DAEMONSET", "TOOLKIT_NODE_LABEL",
    "TOOLKIT_NODE_CONDITION", "TOOLKIT_EVENTS",
})  # fmt: skip
"""Variables of what a pod sends to the API server, for which a Job has no service account."""
_FINAL: Final = (2, 3, 6, 7)
"""Exit codes after which the same command would fail again (docs/exit-codes.md)."""


def generated(manifests: Mapping[Path, str]) -> dict[Path, str]:
    """Return the overlays and the Jobs; `manifests` are the plain manifests that they patch."""
    base = [
        each
        for path, text in manifests.items()
        if path.name != "kustomization.yaml"
        for each in helm.objects(text)
    ]
    [namespace] = [each for each in base if each["kind"] == "Namespace"]
    files: dict[Path, str] = {}
    for row in DISTRIBUTIONS:
        wanted = base if row.name == DEFAULT else [namespace, *rendered(row)]
        below = "../../manifests"
        if row.name != DEFAULT:
            files |= kustomization(OVERLAYS / row.name, below, base, wanted)
            below = f"../../overlays/{row.name}"
        files |= jobs(row, below, wanted)
    return files


def options(row: Distribution) -> tuple[str, ...]:
    """Return helm's options for a row of the table of distributions."""
    named = () if row.name == row.runtime else ("--set", f"operator.distribution={row.name}")
    return ("--set", f"operator.defaultRuntime={row.runtime}", *named)


def rendered(row: Distribution) -> list[Object]:
    """Return what the chart renders for a row, without the words that are only for helm."""
    return [without_helm(each) for each in helm.rendered(KUBERNETES, "--skip-tests", *options(row))]


def without_helm(content: Object) -> Object:
    """Return an object without helm's labels and annotations, in its pod template too."""
    found = copy.deepcopy(content)
    metadata = [found["metadata"]]
    if "template" in found.get("spec", {}):
        metadata.append(found["spec"]["template"]["metadata"])
    for each in metadata:
        for field in ("labels", "annotations"):
            kept = {
                name: value
                for name, value in each.pop(field, {}).items()
                if "helm.sh/" not in name and name != "app.kubernetes.io/managed-by"
            }
            if kept:
                each[field] = kept
    return found


def jobs(row: Distribution, below: str, wanted: Sequence[Object]) -> dict[Path, str]:
    """Return the Jobs for a row, and the kustomization of what has to be there before them."""
    home = JOBS / row.name
    needed = []
    for each in wanted:
        if each["kind"] in {"Namespace", "PriorityClass"}:
            needed.append(each)
        elif each["kind"] == "RuntimeClass":
            # Nothing stays on the node that could label it as ready.
            needed.append({name: value for name, value in each.items() if name != "scheduling"})
    files = kustomization(home, below, wanted, needed)
    template = helm.one(wanted, "DaemonSet")["spec"]["template"]
    for name, words in _COMMANDS.items():
        files[home / f"{name}.yaml"] = _HEAD + _dump(job(template, name, words))
    return files


def job(template: Object, name: str, words: Sequence[str]) -> Object:
    """Return a Job that runs a command once on one node, in the pod of the DaemonSet."""
    labels = {
        "app.kubernetes.io/name": "nvidia-toolkit",
        "app.kubernetes.io/component": name,
    }
    pod = copy.deepcopy(template)
    # Not the labels of the DaemonSet: its selector has to match its own pods alone.
    pod["metadata"]["labels"] = labels
    spec = pod["spec"]
    for unused in ("serviceAccountName", "nodeSelector"):
        spec.pop(unused, None)
    spec["automountServiceAccountToken"] = False
    spec["restartPolicy"] = "Never"
    fields = [{"key": "metadata.name", "operator": "In", "values": [PLACEHOLDER]}]
    spec["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": fields}]
            }
        }
    }
    [container] = spec["containers"]
    container["args"] = list(words)
    container["env"] = [each for each in container["env"] if each["name"] not in _OF_A_POD]
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        container.pop(probe, None)
    codes = {"containerName": container["name"], "operator": "In", "values": list(_FINAL)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            # Not a name of the node: a Job's has 63 characters, a node's up to 253.
            "generateName": f"nvidia-toolkit-{name}-",
            "namespace": helm.NAMESPACE,
            "labels": labels,
            "annotations": {"nvidia-toolkit/node": PLACEHOLDER},
        },
        "spec": {
            "backoffLimit": 4,
            "activeDeadlineSeconds": 900,
            "ttlSecondsAfterFinished": 86400,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
            "template": pod,
        },
    }


def kustomization(
    home: Path, below: str, base: Sequence[Object], wanted: Sequence[Object]
) -> dict[Path, str]:
    """Return the files of a kustomization that makes `wanted` of `base`, the objects of `below`."""
    before = {_identity(each): each for each in base}
    after = {_identity(each): each for each in wanted}
    added = [each for identity, each in after.items() if identity not in before]
    patches = []
    for identity, each in before.items():
        named = {
            "apiVersion": each["apiVersion"],
            "kind": each["kind"],
            "metadata": {
                name: each["metadata"][name]
                for name in ("name", "namespace")
                if name in each["metadata"]
            },
        }
        if identity not in after:
            patches.append({"$patch": "delete", **named})
        elif change := patch(each, after[identity]):
            metadata = {**named["metadata"], **change.pop("metadata", {})}
            patches.append({**named, "metadata": metadata, **change})
    content: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [below, *(["added.yaml"] if added else [])],
    }
    if patches:
        content["patches"] = [{"patch": _dump(each)} for each in patches]
    files = {home / "kustomization.yaml": _HEAD + _dump(content)}
    if added:
        files[home / "added.yaml"] = _HEAD + "---\n".join(map(_dump, added))
    return files


def patch(before: Object, after: Object) -> Object:
    """Return the strategic merge patch that makes one object of another; empty if they are one."""
    found: Object = {}
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            found[name] = None
        elif name not in before:
            found[name] = after[name]
        elif before[name] != after[name]:
            found[name] = _change(name, before[name], after[name])
    return found


def _change(name: str, before: Any, after: Any) -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        return patch(before, after)
    if name in _MERGE_KEYS:
        return _items(_MERGE_KEYS[name], before, after)
    return after


def _items(key: str, before: Sequence[Object], after: Sequence[Object]) -> list[Object]:
    """Return the patch of a list whose items are merged by a key."""
    old = {each[key]: each for each in before}
    new = {each[key]: each for each in after}
    found = [
        {key: name, **patch(old.get(name, {key: name}), each)}
        for name, each in new.items()
        if old.get(name) != each
    ]
    return found + [{key: name, "$patch": "delete"} for name in old if name not in new]


def _identity(content: Object) -> tuple[str, str, str]:
    metadata = content["metadata"]
    return content["kind"], metadata.get("namespace", ""), metadata["name"]


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: lists indented, texts of several lines as blocks, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(content: Object) -> str:
    dumped: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)
    return dumped
