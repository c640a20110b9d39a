"""What is generated below deploy/: `python -m tools.deploy` writes it, a test compares it.

The chart's schema knows the variables of the one table of settings, its distributions are those
of the program, and the plain manifests are what the chart makes of its defaults. The overlays and
the Jobs are made by tools.overlays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from runtimes.distributions import DISTRIBUTIONS
from tests.support import helm
from toolkit.settings.options import SETTINGS, Kind, Setting
from tools import overlays

GENERATED: Final = (overlays.OVERLAYS, overlays.JOBS)
"""Directories below deploy/ with nothing but generated files, besides the plain manifests."""
SCHEMA: Final = helm.CHART / "values.schema.json"
ROWS: Final = helm.CHART / "files/distributions.json"
MANIFESTS: Final = helm.ROOT / "deploy/manifests"
_WORDS: Final = ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f")
_PATHS: Final = frozenset({
    "config", "drop_in_config", "socket", "host_root", "toolkit_bin_dir", "toolkit_install_dir",
    "toolkit_source_root", "pid_file", "driver_root", "driver_root_ctr_path", "dev_root",
    "dev_root_ctr_path", "hooks_dir", "cdi_output_dir",
    "readiness_file", "env_file", "nri_socket",
})  # fmt: skip
_HEAD: Final = "# Rendered from deploy/helm/nvidia-toolkit by `make generate`; change that.\n"


@cache
def generated() -> Mapping[Path, str]:
    """Return every generated file and what has to be in it."""
    files = {SCHEMA: schema(), ROWS: distributions()}
    plain = manifests()
    return files | plain | overlays.generated(plain)


def schema() -> str:
    """Return the chart's schema with the variables of the table of settings."""
    found = json.loads(SCHEMA.read_text(encoding="utf-8"))
    found["$defs"]["variable"] = _variable()
    return json.dumps(found, indent=2) + "\n"


def distributions() -> str:
    """Return the distributions as the chart reads them: where to mount what."""
    rows = {
        row.name: {
            "runtime": str(row.runtime),
            "config": row.config,
            "dropIn": row.drop_in,
            "sockets": list(row.sockets),
        }
        for row in DISTRIBUTIONS
    }
    return json.dumps(rows, indent=2) + "\n"


def _kept() -> dict[str, str]:
    """Return the annotations that make Argo CD and Flux leave an object, as the chart has them."""
    role = helm.one(helm.rendered(), "Role")
    found: dict[str, str] = role["metadata"]["annotations"]
    return {name: value for name, value in found.items() if not name.startswith("helm.sh/")}


def manifests() -> dict[Path, str]:
    """Return the plain manifests: a namespace, the chart's objects by kind, the kustomization."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": helm.NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
            # With the namespace goes the role, and what else is in it.
            "annotations": _kept(),
        },
    }
    texts: dict[str, list[str]] = {"namespace.yaml": [yaml.safe_dump(namespace, sort_keys=False)]}
    for text in helm.template(overlays.KUBERNETES).split("\n---\n"):
        if helm.objects(text):
            name = text.split("# Source: nvidia-toolkit/templates/", 1)[1].split("\n", 1)[0]
            texts.setdefault(name, []).append(_plain(text))
    files = {MANIFESTS / name: _HEAD + "---\n".join(parts) for name, parts in texts.items()}
    listed = "".join(f"  - {name}\n" for name in sorted(texts))
    files[MANIFESTS / "kustomization.yaml"] = (
        f"{_HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind:"
        f" Kustomization\nresources:\n{listed}"
    )
    return files


def write() -> None:
    """Write every generated file; the schema first, since helm reads it."""
    SCHEMA.write_text(schema(), encoding="utf-8")
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text(distributions(), encoding="utf-8")
    plain = manifests()
    for path, text in (plain | overlays.generated(plain)).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _plain(text: str) -> str:
    """Return an object without the words that are only for helm."""
    only_helm = ("helm.sh/", "app.kubernetes.io/managed-by:", "# Source:")
    lines = [line for line in text.splitlines() if not line.strip().startswith((*only_helm, "---"))]
    kept = []
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        below = lines[index + 1] if index + 1 < len(lines) else ""
        is_empty = line.strip() == "annotations:" and len(below) - len(below.lstrip()) <= indent
        if not is_empty and line.strip():
            kept.append(line)
    return "\n".join(kept) + "\n"


def _variable() -> dict[str, Any]:
    """Return the schema of one toolkit.env entry: a name that the program knows, a valid value."""
    names = [name for row in SETTINGS for name in row.variables]
    rules = [_rule(row) for row in SETTINGS if row.variables]
    return {
        "type": "object",
        "required": ["name", "value"],
        "additionalProperties": False,
        "properties": {
            "name": {"enum": names},
            "value": {"type": ["string", "boolean", "integer"]},
        },
        "allOf": [rule for rule in rules if rule],
    }


def _rule(row: Setting) -> dict[str, Any]:
    value = _value(row)
    if not value:
        return {}
    named = {"properties": {"name": {"enum": list(row.variables)}}, "required": ["name"]}
    return {"if": named, "then": {"properties": {"value": value}}}


def _value(row: Setting) -> dict[str, Any]:
    if row.kind is Kind.FLAG:
        # As --set gives it: true is a truth, "true" a text, and both are meant.
        words = [form for word in _WORDS for form in (word, word.capitalize(), word.upper())]
        return {"enum": [True, False, 1, 0, *dict.fromkeys(words)]}
    if row.kind is Kind.SECONDS:
        return {"pattern": r"^[0-9]+(\.[0-9]+)?s?$"}
    if row.kind is Kind.COUNT:
        return {"pattern": "^[0-9]{1,9}$"}
    if row.choices:
        return {"enum": list(row.choices)}
    if row.name in _PATHS:
        return {"type": "string", "pattern": "^(/.*)?$"}
    return {}


if __name__ == "__main__":
    write()
