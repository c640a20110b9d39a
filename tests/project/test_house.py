"""The house rules: lint, format, types, layers, generated docs that are up to date."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import fake_node
from tests.support.availability import Unavailable
from toolkit import errors
from toolkit.settings.options import GROUPS, SETTINGS
from tools import completions, deploy, docs, manual, source, values, version

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
_CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("runtimes", "toolkit")
    for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=["ruff", "format", "mypy", "layers"],
)
def test_tool_has_no_complaint(command: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", _CODE)
def test_room_is_named_by_a_noun(path: str) -> None:
    assert Path(path).stem not in {"util", "utils", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", [p for p in _CODE if not p.startswith("toolkit/cli/m")])
def test_dry_run_is_no_word_below_the_command_line(path: str) -> None:
    assert not re.search(r"\bdry", (ROOT / path).read_text(encoding="utf-8"))


def test_options_are_documented() -> None:
    written = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert written == docs.options(), "run `make generate`"


def test_the_types_of_the_settings_are_up_to_date() -> None:
    assert values.PATH.read_text(encoding="utf-8") == values.text(), "run: make generate"


def test_a_setting_without_a_group_is_named_before_anything_is_generated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = GROUPS
    monkeypatch.setattr(values, "GROUPS", ((first[0], first[1][1:]), *others))
    monkeypatch.setattr(sys, "argv", ["values"])
    written = values.PATH.read_bytes()
    assert values.main() == 1
    assert capsys.readouterr().err == (
        f"tools.values: {first[1][0]}: in SETTINGS of toolkit/settings/options.py, and in no group"
        " of GROUPS below it: add it to one\n"
    )
    assert values.PATH.read_bytes() == written


def test_what_a_machine_without_go_cannot_generate_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impossible() -> None:
        raise Unavailable("helm is not built: it needs Go 1.26 or newer on PATH")

    monkeypatch.setattr(deploy, "write", impossible)
    assert deploy.main() == 1
    assert capsys.readouterr().err == (
        "tools.deploy: helm is not built: it needs Go 1.26 or newer on PATH. Without it"
        " deploy/manifests, deploy/overlays and deploy/jobs stay as they are; everything else is"
        " written. They change only with the chart and with runtimes/distributions.py\n"
    )


def test_the_differences_from_upstream_are_up_to_date() -> None:
    written = (ROOT / "docs/gpu-operator.md").read_text(encoding="utf-8")
    assert written == docs.gpu_operator(written), "run `make generate`"


def test_the_manual_page_is_up_to_date() -> None:
    assert manual.PAGE.read_text(encoding="utf-8") == manual.page(), "run `make generate`"


@fake_node.needs_program("groff", package="groff-base")
def test_the_manual_page_is_one() -> None:
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rcR=1", "-rLL=300n", str(manual.PAGE)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert shown.stderr == ""
    flat = re.sub(r"\s+", "", shown.stdout)
    lost = [
        row.name
        for row in SETTINGS
        if row.flags[0] not in flat or row.help.replace(" ", "") not in flat
    ]
    assert lost == []


def test_exit_codes_are_documented() -> None:
    text = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    known = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ToolkitError)
    }
    assert documented == {0, 1, *known, *errors.Answer}


def test_every_package_is_in_the_wheel() -> None:
    """An editable installation finds the others all the same, an image does not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = {Path(path).parent.as_posix().replace("/", ".") for path in _CODE}
    assert set(project["tool"]["setuptools"]["packages"]) == {"nvidia_toolkit", *there}


@pytest.mark.parametrize("name", version.PLACES)
def test_the_version_is_the_program_s_wherever_it_is_repeated(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert version.updated(text, version.PLACES[name]) == text, "run `make generate`"
    assert version.updated(text, version.PLACES[name], "9.8.7") != text


@pytest.mark.parametrize("shell", completions.NAMES)
def test_the_completion_of_a_shell_is_up_to_date(shell: str) -> None:
    written = (completions.PLACE / completions.NAMES[shell]).read_text(encoding="utf-8")
    assert written == completions.text(shell), "run `make generate`"


def test_no_path_of_a_machine_is_in_the_tree() -> None:
    listed = source.listed(ROOT)
    # A checkout's own place, and what lies hidden in a home.
    strange = re.compile(f"{re.escape(str(ROOT))}/|{re.escape(str(Path.home()))}/[.]")
    texts = {name: (ROOT / name).read_bytes().decode(errors="replace") for name in listed}
    assert [name for name, text in texts.items() if strange.search(text)] == []


def test_every_test_that_the_documents_name_exists() -> None:
    named = set()
    for path in (ROOT / "docs").rglob("*.md"):
        named |= set(
            re.findall(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`", path.read_text(encoding="utf-8"))
        )
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not (ROOT / file).exists()
        or (name and f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []
