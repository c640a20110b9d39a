"""What is generated below deploy/: `python -m tools.deploy` writes it, a test compares it.

The chart's schema knows the variables of the one table of settings, its distributions are those
of the program, and the plain manifests are what the chart makes of its defaults. The overlays and
the Jobs are made by tools.overlays. The comments of values.yaml are the descriptions in the
schemas and in the chart's README.

There are two schemas. The strict one knows every name and choice; editors read it, and so does
the chart's template `nvidia-toolkit.check`. The one that helm enforces leaves names and choices to
that template: helm checks it first, and its messages neither name the closest name nor stay short.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from runtimes.distributions import DISTRIBUTIONS
from tests.support import helm
from tests.support.availability import Unavailable
from toolkit.settings.options import SETTINGS, Kind, Setting
from tools import overlays

VALUES: Final = helm.CHART / "values.yaml"
STRICT: Final = helm.CHART / "files/values.strict.schema.json"
GENERATED: Final = (overlays.OVERLAYS, overlays.JOBS)
"""Directories below deploy/ with nothing but generated files, besides the plain manifests."""
SCHEMA: Final = helm.CHART / "values.schema.json"
README: Final = helm.CHART / "README.md"
ROWS: Final = helm.CHART / "files/distributions.json"
MANIFESTS: Final = helm.ROOT / "deploy/manifests"
_WORDS: Final = ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f")
_PATHS: Final = frozenset({
    "config", "drop_in_config", "socket", "host_root", "toolkit_bin_dir", "toolkit_install_dir",
    "toolkit_source_root", "pid_file", "driver_root", "driver_root_ctr_path", "dev_root",
    "dev_root_ctr_path", "hooks_dir", "cdi_output_dir",
    "readiness_file", "env_file", "nri_socket",
})  # fmt: skip
_TABLE: Final = ("<!-- generated from values.yaml: -->\n", "<!-- end of what is generated -->\n")
_OPENSHIFT: Final = "openshift"
"""CRI-O with its usual paths, so no row of the program: what differs are objects of the chart."""
_HEAD: Final = "# Rendered from deploy/helm/nvidia-toolkit by `make generate`; change that.\n"


@cache
def generated() -> Mapping[Path, str]:
    """Return every generated file and what has to be in it."""
    files = {
        STRICT: strict_schema(),
        SCHEMA: schema(),
        ROWS: distributions(),
        README: readme(),
    }
    plain = manifests()
    return files | plain | overlays.generated(plain)


def strict_schema() -> str:
    """Return the schema with all names and choices: its rules, and what is known elsewhere."""
    found = json.loads(STRICT.read_text(encoding="utf-8"))
    found["$defs"]["variable"] = _variable()
    names = [row.name for row in DISTRIBUTIONS if row.name != row.runtime]
    operator = found["properties"]["operator"]["properties"]
    operator["distribution"]["enum"] = ["", *names, _OPENSHIFT]
    for path, text in descriptions().items():
        place = _at(found, path)
        place.pop("description", None)
        place["description"] = text
    for path, value in _leaves(found, _values()):
        _at(found, path)["default"] = value
    return json.dumps(found, indent=2) + "\n"


def schema() -> str:
    """Return the schema that helm enforces: the strict one without unknown names and choices."""
    return json.dumps(_without_names(json.loads(strict_schema())), indent=2) + "\n"


def descriptions() -> dict[str, str]:
    """Return the comment above each value of values.yaml, as one line, by its path.

    A comment that a blank line follows is about the file.
    """
    found: dict[str, str] = {}
    above: list[str] = []
    path: list[str] = []
    for line in VALUES.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)# ?(.*)", line):
            above.append(match[2].strip())
        elif match := re.match(r"((?:  )*)(\w+):", line):
            path[len(match[1]) // 2 :] = [match[2]]
            if above:
                found[".".join(path)] = " ".join(above)
            above = []
        else:
            above = []
    return found


def readme() -> str:
    """Return the chart's README with the table of its values."""
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(_TABLE[0])
    _, _, tail = rest.partition(_TABLE[1])
    described = descriptions()
    lines = ["| value | default | description |", "| --- | --- | --- |"]
    for path, value in _leaves(json.loads(STRICT.read_text(encoding="utf-8")), _values()):
        default = "" if value in ("", None) else f"`{json.dumps(value)}`"
        meaning = described.get(path, described.get(path.rpartition(".")[0], ""))
        lines.append(f"| `{path}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return head + _TABLE[0] + "\n" + "\n".join(lines) + "\n\n" + _TABLE[1] + tail


def distributions() -> str:
    """Return the distributions as the chart reads them: where to mount what."""
    rows = {
        row.name: {
            "runtime": str(row.runtime),
            "config": row.config,
            "dropIn": row.drop_in,
            "sockets": list(row.sockets),
            "runtimeClasses": list(row.runtime_classes),
        }
        for row in DISTRIBUTIONS
    }
    rows[_OPENSHIFT] = rows["crio"]
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
    for text in helm.template(overlays.KUBERNETES, "--skip-tests").split("\n---\n"):
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
    """Write every generated file; the schemas first, since helm reads them."""
    STRICT.write_text(strict_schema(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text(distributions(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
    plain = manifests()
    for path, text in (plain | overlays.generated(plain)).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    return found


def _at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the rule of a value. A KeyError means that values.yaml has it and the schema not."""
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def _leaves(schema: dict[str, Any], values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the path and default of each value whose rule is written at its own place."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        rule = schema["properties"][name]
        if value and isinstance(value, dict) and "properties" in rule:
            found += [(f"{name}.{path}", each) for path, each in _leaves(rule, value)]
        else:
            found.append((name, value))
    return found


def _without_names(rule: Any) -> Any:
    """Return a rule that lets every name and choice through; conditions stay as they are."""
    if isinstance(rule, list):
        return [_without_names(each) for each in rule]
    if not isinstance(rule, dict):
        return rule
    kept = {
        name: each if name in {"if", "default", "required"} else _without_names(each)
        for name, each in rule.items()
    }
    if isinstance(kept.get("enum"), list):
        del kept["enum"]
    if kept.get("additionalProperties") is False:
        del kept["additionalProperties"]
    if "allOf" in kept:
        kept["allOf"] = [each for each in kept["allOf"] if each["then"]["properties"]["value"]]
    return kept


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


def main() -> int:
    """Write everything; return 1 where helm, which renders the manifests, cannot be built."""
    try:
        write()
    except Unavailable as reason:
        sys.stderr.write(
            f"tools.deploy: {reason}. Without it deploy/manifests, deploy/overlays and deploy/jobs"
            " stay as they are; everything else is written. They change only with the chart and"
            " with runtimes/distributions.py\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
