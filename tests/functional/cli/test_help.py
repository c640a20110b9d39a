"""The help at a terminal: what a person needs first, everything on request, on any width."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake_node
from tests.support.fake_node import Node
from toolkit.cli import help as pages
from toolkit.cli import main
from toolkit.settings.options import SETTINGS
from toolkit.settings.resolve import Settings

COMMANDS = ("run", "plan", "status", "revert", "detect", "diagnose")


def shown(*words: str, columns: int = 80) -> list[str]:
    done = fake_node.done(*words, environment={"COLUMNS": str(columns)})
    return done.stdout.splitlines()


def flags(lines: list[str]) -> set[str]:
    """Return the options that stand at the beginning of an entry."""
    return {
        word.rstrip(",")
        for line in lines
        if line.startswith("  -")
        for word in line.split()
        if word.startswith("--")
    }


def test_ten_options_are_common() -> None:
    common = {row.flags[0] for row in SETTINGS if row.is_common}
    assert len(common) == 10
    assert common <= flags(shown("run", "--help"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_on_a_page_and_names_the_rest(command: str) -> None:
    lines = shown(command, "--help")
    assert len(lines) < 60
    assert f"`nvidia-toolkit {command} --help-all` lists all options." in " ".join(lines)
    assert "[env: " not in " ".join(lines)
    others = {row.flags[0] for row in SETTINGS if not row.is_common}
    assert flags(lines).isdisjoint(others)
    full = shown(command, "--help-all")
    assert len(full) > len(lines)
    assert "[env: RUNTIME]" in " ".join(" ".join(full).split())


@pytest.mark.parametrize("command", ["plan", "status", "revert", "detect", "diagnose"])
def test_options_of_the_agent_stand_in_the_help_of_run_alone(command: str) -> None:
    assert "--check-interval" in flags(shown("run", "--help-all"))
    assert "--check-interval" not in flags(shown(command, "--help-all"))


def test_run_shows_every_option() -> None:
    assert {row.flags[0] for row in SETTINGS} <= flags(shown("run", "--help-all", columns=200))


@pytest.mark.parametrize("words", [("--help",), *((each, "--help") for each in COMMANDS)])
def test_it_is_readable_on_a_narrow_terminal(words: tuple[str, ...]) -> None:
    lines = shown(*words, columns=60)
    assert max(map(len, lines)) <= 60
    assert "..." not in " ".join(lines).replace("[ARGS]...", "")


def test_a_name_that_is_longer_than_the_line_stays_whole() -> None:
    text = pages.entries([("--a-name-that-is-long", "a word")], 10)
    assert text == "  --a-name-that-is-long\n      a\n      word\n"


@pytest.mark.parametrize("command", ["revert", "detect"])
def test_a_command_shows_every_option_that_it_reads(
    node: Node, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_node.name_low_level(node)
    fake_node.done("-n", *node.options(restart_mode="none"))
    read: set[str] = set()
    real = Settings.__getattr__  # type: ignore[attr-defined]  # it is hidden from mypy

    def noted(self: Settings, name: str) -> object:
        # Validation of all values together is no use of one of them.
        frame = sys._getframe(1)
        if frame.f_globals["__name__"] not in {"toolkit.settings.resolve", "runtimes.dataclass"}:
            read.add(name)
        result: object = real(self, name)
        return result

    monkeypatch.setattr(Settings, "__getattr__", noted)
    stdout = sys.stdout
    with pytest.raises(SystemExit) as caught:
        main.main([command, *node.options(restart_mode="none")])
    sys.stdout = stdout
    assert caught.value.code == 0
    names = {name for _, group in pages.sections(command, is_full=True) for name in group}
    of_the_plan = {"runtime_class", "runtime_type", "runtime_config_override", "set_as_default"}
    assert read - names - of_the_plan - _UNUSED == set()


_UNUSED = {
    "allow_non_kubelet_runtime", "cdi_annotation_prefixes", "cdi_enabled", "config_mode",
    "enable_cdi_in_runtime", "enable_cri", "no_daemon", "no_install", "no_runtime_config",
    "toolkit_bin_dir", "use_legacy_config", "hooks_dir", "hook_filename", "executable_path",
    "config_source", "pid_file", "readiness_file",
}  # fmt: skip
"""Read to describe the handlers that an installation would have; without effect on these two."""


# --- the program alone --------------------------------------------------------------------------


def alone(files: tuple[str, ...], **variables: str) -> str:
    """Run the program without a word at a terminal; return what it prints there.

    `files` are those by which a container is known.
    """
    script = (
        "from toolkit.cli import command_line as line, main\n"
        f"line.CONTAINER_FILES = {files!r}; main.main([])"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=fake_node.CHECKOUT,
        env={**fake_node.ENVIRONMENT, "HOST_ROOT_MOUNT": "/nonexistent", **variables},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        text = b"".join(fake_node.chunks(ours))
        process.wait(30)
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize(
    ("files", "variables", "is_help"),
    [
        ((), {}, True),
        (("/proc/self/stat",), {}, False),
        ((), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
    ids=["a node", "a container", "a pod"],
)
def test_the_program_alone_shows_help_at_a_terminal_and_installs_in_a_container(
    files: tuple[str, ...], variables: dict[str, str], *, is_help: bool
) -> None:
    shown = alone(files, **variables)
    assert shown.startswith("Usage: nvidia-toolkit [OPTIONS] COMMAND") == is_help
    assert ("--host-root=/nonexistent: no such directory" in shown) != is_help


def test_without_a_terminal_the_program_alone_installs() -> None:
    done = fake_node.cli(environment={"HOST_ROOT_MOUNT": "/nonexistent"})
    assert done.returncode == 2
    assert "--host-root=/nonexistent: no such directory" in done.stderr


def test_the_manual_has_what_the_help_leaves_out() -> None:
    text = Path(fake_node.CHECKOUT / "docs/man/nvidia-toolkit.1").read_text(encoding="utf-8")
    assert all(row.flags[0].replace("-", "\\-") in text for row in SETTINGS)
