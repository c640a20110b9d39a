"""Other people's programs have one version each in this repository, and the documents name it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.support import versions
from tests.support.documents import ROOT

_NAMED: Final = frozenset(
    version.removeprefix("v")
    for version in (
        versions.TOOLKIT,
        *versions.CONTAINERD.values(),
        versions.CRIO,
        versions.KUBERNETES,
        *versions.HELM.values(),
        versions.CNI_PLUGINS,
        versions.PROMETHEUS,
        versions.KWOK,
    )
)
_TOOLKIT: Final = versions.TOOLKIT.removeprefix("v")
_HELM: Final = " and ".join(version.removeprefix("v") for version in versions.HELM.values())
CLAIMS: Final = (
    ("Dockerfile", r"^ARG ARTIFACTS_IMAGE=\S+:v(\S+)$", _TOOLKIT),
    ("docs/install.md", r"ARTIFACTS_IMAGE=\S+:v(\S+)", _TOOLKIT),
    ("docs/cdi.md", r"The programs are the real ones, version (\S+) ", _TOOLKIT),
    ("docs/gpu-operator.md", r"^\| \| upstream (\S+) \|", _TOOLKIT),
    ("docs/compatibility.md", r"^\| NVIDIA Container Toolkit \| ([\d.]+):", _TOOLKIT),
    ("docs/compatibility.md", r"^\| CRI-O [\d.]+ \(([\d.]+)\) \| booted", versions.CRIO),
    ("docs/compatibility.md", r"^\| Kubernetes \| ([\d.]+):", versions.KUBERNETES),
    ("docs/compatibility.md", r"^\| kwok \| ([\d.]+):", versions.KWOK.removeprefix("v")),
    ("docs/compatibility.md", r"^\| Helm \| (.+) \|$", _HELM),
    ("docs/nri.md", r"CRI-O (\d+\.\d+\.\d+)", versions.CRIO),
    ("README.md", r"^`nvidia-ctk-installer` (\d[\d.]+),", _TOOLKIT),
)
"""Where a file names a version: the file, a pattern with the version as its group, the version."""


@pytest.mark.parametrize(("file", "pattern", "wanted"), CLAIMS)
def test_a_file_names_the_version_that_is_tested(file: str, pattern: str, wanted: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.findall(pattern, text, re.MULTILINE)
    assert found, f"{file} no longer contains {pattern}"
    assert set(found) == {wanted}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tests", "tools"])
def test_no_other_code_names_a_version(folder: str) -> None:
    place = Path(versions.__file__)
    strange = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in (ROOT / folder).rglob("*.py")
        if path != place
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.removeprefix("v") in _NAMED
    ]
    assert strange == [], "import it from tests/support/versions.py"
