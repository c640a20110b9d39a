"""The typed schemas of Kubernetes' and OpenShift's APIs, from the Go modules of their clients.

Each minor version of client-go holds the schema by which the API server merges fields. It names
every field of every type, so an unknown field is found without a server of that version.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import nodes, versions
from tests.support.availability import Unavailable

_KUBERNETES: Final = ("k8s.io/client-go", "applyconfigurations/internal/internal.go")
_OPENSHIFT: Final = (
    "github.com/openshift/client-go",
    "security/applyconfigurations/internal/internal.go",
)
_GROUPS: Final = {
    "": "core", "apps": "apps", "node.k8s.io": "node", "networking.k8s.io": "networking",
    "rbac.authorization.k8s.io": "rbac", "scheduling.k8s.io": "scheduling",
    "admissionregistration.k8s.io": "admissionregistration",
}  # fmt: skip
_DOWNLOAD_TIME: Final = 300

Schema = Mapping[str, Any]


def errors(found: Mapping[str, Any], minor: int) -> list[str]:
    """Return what a minor version of Kubernetes does not know in an object, each with its path.

    Raises KeyError for a kind that this version does not have, or of a group without a schema.
    """
    group, _, version = f"/{found['apiVersion']}".rpartition("/")
    group = group.removeprefix("/")
    if group == "security.openshift.io":
        types = _types(_OPENSHIFT[0], versions.OPENSHIFT_CLIENT, _OPENSHIFT[1])
        name = f"com.github.openshift.api.security.{version}.{found['kind']}"
    else:
        types = _types(_KUBERNETES[0], f"v0.{minor}.0", _KUBERNETES[1])
        name = f"io.k8s.api.{_GROUPS[group]}.{version}.{found['kind']}"
    return list(_problems(types, types[name], found, str(found["kind"])))


def prepare() -> None:
    """Download and parse what is needed for all versions."""
    for minor in versions.KUBERNETES_MINORS:
        _types(_KUBERNETES[0], f"v0.{minor}.0", _KUBERNETES[1])
    _types(_OPENSHIFT[0], versions.OPENSHIFT_CLIENT, _OPENSHIFT[1])


def _problems(types: Schema, rule: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    if name := rule.get("namedType"):
        rule = types[name]
    if value is None:
        return
    if isinstance(value, dict) and "map" in rule:
        yield from _fields(types, rule["map"], value, path)
    elif isinstance(value, list) and "list" in rule:
        for index, each in enumerate(value):
            yield from _problems(types, rule["list"]["elementType"], each, f"{path}[{index}]")
    elif isinstance(value, dict | list) or not _is(value, rule.get("scalar", "")):
        yield f"{path}: {value!r} is not of the type {rule}"


def _fields(
    types: Schema, rule: Mapping[str, Any], value: Mapping[str, Any], path: str
) -> Iterator[str]:
    fields = {each["name"]: each["type"] for each in rule.get("fields", ())}
    for key, each in value.items():
        if field := fields.get(key, rule.get("elementType")):
            yield from _problems(types, field, each, f"{path}.{key}")
        else:
            yield f"{path}.{key}: unknown field"


def _is(value: object, scalar: str) -> bool:
    match scalar:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "numeric":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return scalar == "untyped"


@cache
def _types(module: str, version: str, inner: str) -> Schema:
    """Return the types of a module's schema by name, downloaded and parsed once per machine."""
    home = nodes.cache() / "go" / "api-schemas"
    home.mkdir(parents=True, exist_ok=True)
    made = home / f"{module.replace('/', '+')}@{version}.json"
    with (home / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            text = (_download(module, version) / inner).read_text(encoding="utf-8")
            [schema] = re.findall(r"`(types:\n.*?)`", text, re.DOTALL)
            types = yaml.load(schema, yaml.CSafeLoader)["types"]
            part = made.with_suffix(".part")
            part.write_text(json.dumps({each["name"]: each for each in types}), encoding="utf-8")
            part.rename(made)
    found: Schema = json.loads(made.read_text(encoding="utf-8"))
    return found


def _download(module: str, version: str) -> Path:
    if shutil.which("go") is None:
        raise Unavailable(
            f"the schemas of {module} are not here: they need Go 1.26 or newer on PATH"
        )
    done = subprocess.run(
        ("go", "mod", "download", "-json", f"{module}@{version}"),
        cwd="/",
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_DOWNLOAD_TIME,
    )
    if done.returncode != 0:
        raise Unavailable(f"{module} {version} cannot be downloaded here: {done.stderr[-500:]}")
    return Path(json.loads(done.stdout)["Dir"])
