"""The command line as people and pods use it: words, both streams, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from tests.support import fake_node, pods
from toolkit import __version__
from toolkit.cli import command_line, commands, main, parser
from toolkit.settings.options import GROUPS, SETTINGS, Setting

COLOUR = "\x1b["


@pytest.fixture
def node(tmp_path: Path) -> fake_node.Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    return node


@pytest.fixture
def quiet(node: fake_node.Node) -> list[str]:
    """Return options with which nobody needs to listen."""
    return node.options(restart_mode="none")


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "explicit"),
    [
        ([], ["run"]),
        (["-n"], ["run", "--no-daemon=true"]),
        (
            ["--no-daemon", "--runtime=containerd"],
            ["run", "--no-daemon=true", "--runtime=containerd"],
        ),
        (["run", "--set-as-default"], ["run", "--set-as-default=true"]),
        (["plan", "--set-as-default=false"], ["plan", "--set-as-default=false"]),
        (["plan", "--set-as-default", "false"], ["plan", "--set-as-default=true", "false"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
        (["revert", "-o", "json"], ["revert", "-o", "json"]),
    ],
    ids=" ".join,
)
def test_options_without_a_command_mean_run_and_a_flag_takes_no_word(
    words: list[str], explicit: list[str]
) -> None:
    assert command_line.explicit(words) == explicit


def test_a_flag_does_not_eat_the_next_word(quiet: list[str]) -> None:
    done = fake_node.cli("plan", "--set-as-default", *quiet)
    assert done.returncode == 0, done.stderr
    assert 'default_runtime_name = "nvidia"' in done.stdout
    refused = fake_node.cli("plan", "--set-as-default", "false", *quiet)
    assert refused.returncode == 2
    assert "hint: --set-as-default=false\n" in refused.stderr


@pytest.mark.parametrize(
    "word", ["--set-as-default=false", "--set-as-default=no", "--set-as-default=0"]
)
def test_a_flag_can_be_denied(quiet: list[str], word: str) -> None:
    done = fake_node.done("plan", word, *quiet)
    assert "default_runtime_name" not in done.stdout
    assert "runtimes.nvidia." in done.stdout


@pytest.mark.parametrize("word", ["-n", "--no-daemon", "--no-daemon=true"])
def test_no_daemon_ends_after_the_set_up(node: fake_node.Node, quiet: list[str], word: str) -> None:
    assert fake_node.done(word, *quiet).stdout == ""
    assert node.toolkit.is_symlink()


def test_a_short_flag_can_be_denied(node: fake_node.Node, quiet: list[str]) -> None:
    with fake_node.started(fake_node.program("-n=false", *quiet)) as process:
        fake_node.wait_for(
            lambda: node.toolkit.is_symlink() or process.poll() is not None, "it does nothing"
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.3)


def test_variables_alone_are_enough(node: fake_node.Node) -> None:
    environment = {
        "RUNTIME": "containerd",
        "CONTAINERD_CONFIG": str(node.config),
        "RUNTIME_DROP_IN_CONFIG": str(node.drop_in),
        "CONTAINERD_SOCKET": str(node.socket),
        "ROOT": str(node.install_dir),
        "TOOLKIT_SOURCE_ROOT": str(node.source),
        "TOOLKIT_PID_FILE": str(node.pid_file),
        "HOST_ROOT_MOUNT": "/",
        "RUNTIME_CONFIG_SOURCES": "file",
        "RUNTIME_RESTART_MODE": "none",
        "NO_DAEMON": "yes",
        "DOCKER_RESTART_MODE": "nonsense that does not count here",
    }
    fake_node.done(environment=environment)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()


# --- both streams -------------------------------------------------------------------------------


def test_stdout_is_the_answer_and_stderr_the_story(node: fake_node.Node, quiet: list[str]) -> None:
    planned = fake_node.done("plan", *quiet)
    assert planned.stderr == ""
    installed = fake_node.done("-n", *quiet)
    assert installed.stdout == ""
    assert re.search(r"^I apply: changed .*/config\.toml$", installed.stderr, re.MULTILINE)
    assert f"installed the toolkit at {node.toolkit}" in installed.stderr
    assert "leaves" not in installed.stderr
    reverted = fake_node.done("revert", *quiet)
    assert reverted.stdout.splitlines() == [f"restored {node.config}", "reverted"]
    again = fake_node.done("revert", *quiet)
    assert again.stdout == "nothing to revert\n"


def test_debug_tells_more(quiet: list[str]) -> None:
    loud = fake_node.done("plan", "--debug", *quiet).stderr
    assert re.search(r"^D .*does not exist", loud, re.MULTILINE)


def test_the_plan_as_text_ends_with_a_summary(node: fake_node.Node, quiet: list[str]) -> None:
    lines = fake_node.done("plan", *quiet).stdout.splitlines()
    assert lines[:2] == [f"--- {node.config}", f"+++ {node.config}"]
    assert (
        lines[-1] == f"# 1 file to change, the toolkit to install at {node.toolkit},"
        " the runtime to be restarted by you (--restart-mode none)"
    )


def test_the_plan_as_json(node: fake_node.Node, quiet: list[str]) -> None:
    answer = json.loads(fake_node.done("plan", "-o", "json", *quiet).stdout)
    assert answer.keys() == {
        "runtime", "in_sync", "binary", "changes", "toolkit", "specification", "reload", "notes",
        "summary", "nri", "blocked", "operation",
    }  # fmt: skip
    assert (answer["runtime"], answer["in_sync"], answer["binary"]) == ("containerd", False, None)
    (change,) = answer["changes"]
    assert change.keys() == {"path", "node_path", "action", "diff"}
    assert (change["path"], change["node_path"], change["action"]) == (
        str(node.config), str(node.config), "modify",
    )  # fmt: skip
    head = f"--- {node.config}\n+++ {node.config}\n"
    assert change["diff"].startswith(
        f'{head}+plugins."io.containerd.grpc.v1.cri".containerd.default_'
    )
    assert answer["specification"] is None
    assert answer["toolkit"].keys() == {"path", "version", "in_sync", "differing"}
    assert answer["toolkit"]["path"] == str(node.toolkit)
    assert "nvidia-ctk" in answer["toolkit"]["differing"]
    assert answer["reload"] == {
        "needed": True,
        "reason": "the configuration changes",
        "how": "not restarted (restart mode none): restart it yourself",
        "unavailable_s": None,
    }
    assert answer["summary"].startswith("1 file to change, ")


def test_the_state_as_json_once_all_is_done(quiet: list[str]) -> None:
    fake_node.done("-n", *quiet)
    answer = json.loads(fake_node.done("status", "--output=json", *quiet).stdout)
    assert (answer["in_sync"], answer["changes"], answer["toolkit"]["in_sync"]) == (True, [], True)
    assert answer["reload"]["needed"] is False
    assert answer["reload"]["reason"] == "the configuration is in sync"


def test_an_install_as_json(node: fake_node.Node, quiet: list[str]) -> None:
    answer = json.loads(fake_node.done("run", "-n", "-o", "json", *quiet).stdout)
    assert (answer["outcome"], answer["changes"][0]["path"]) == ("changed", str(node.config))
    assert answer["seconds"] > 0
    again = json.loads(fake_node.done("-n", "-o", "json", *quiet).stdout)
    assert (again["outcome"], again["in_sync"], again["changes"]) == ("in sync", True, [])
    assert again["reload"]["unavailable_s"] == 0


def test_a_process_that_stays_gives_no_answer(node: fake_node.Node, quiet: list[str]) -> None:
    done = fake_node.cli("run", "-o", "json", *quiet)
    assert done.returncode == 2
    assert "-o json requires --no-daemon" in done.stderr
    assert "--log-format=json" in json.loads(done.stdout)["error"]["hint"]
    assert not node.install_dir.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["plan", "-o", "json", "--config-source=file"], 3),
        (["status", "-o", "json", "--no-such-option"], 2),
        (["-n", "--output=json", "--verify=never"], 2),
    ],
    ids=["not understood", "unknown option", "wrong value"],
)
def test_a_failure_as_json(
    node: fake_node.Node, quiet: list[str], words: list[str], code: int
) -> None:
    node.config.write_bytes(b"version = \n")
    done = fake_node.cli(*words, *quiet)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (code, code)
    assert error["problems"] == [
        line.removeprefix("error: ")
        for line in done.stderr.splitlines()
        if line.startswith("error: ")
    ]
    assert f"hint: {error['hint']}\n" in done.stderr


def test_a_revert_as_json(node: fake_node.Node, quiet: list[str]) -> None:
    fake_node.done("-n", *quiet)
    answer = json.loads(fake_node.done("revert", "-o", "json", *quiet).stdout)
    assert [change["action"] for change in answer["changes"]] == ["modify"]
    assert answer["changes"][0]["path"] == str(node.config)
    assert answer["stayed"] == []


@pytest.mark.parametrize(
    "config", [None, b"version = 2"], ids=["absent", "without a last line end"]
)
def test_the_diff_is_one_that_patch_understands(tmp_path: Path, config: bytes | None) -> None:
    node = fake_node.make_node(tmp_path / "node", config)
    quiet = node.options(restart_mode="none")
    answer = json.loads(fake_node.done("plan", "-o", "json", "--diff=full", *quiet).stdout)
    with fake_node.daemon(node.socket, home=tmp_path / "d"):
        fake_node.done("-n", *quiet)
    for change in answer["changes"]:
        assert change["action"] == ("create" if config is None else "modify")
        assert change["diff"].startswith(f"--- {'/dev/null' if config is None else node.config}\n")
        if config is not None:
            assert "-version = 2\n\\ No newline at end of file\n" in change["diff"]
        added = [line[1:] for line in change["diff"].splitlines()[2:] if line[:1] in {"+", " "}]
        assert added == node.config.read_text(encoding="utf-8").splitlines()


def test_colour_is_for_terminals_only(quiet: list[str]) -> None:
    assert COLOUR not in fake_node.done("plan", *quiet).stdout
    shown = fake_node.on_terminal("plan", *quiet)
    assert f'{COLOUR}32m+    default_runtime_name = "nvidia"{COLOUR}0m' in shown


def test_what_matters_most_in_a_plan_has_a_colour(node: fake_node.Node, quiet: list[str]) -> None:
    """Red for what refuses a run, yellow for pending changes, green for a node in sync."""
    shown = fake_node.on_terminal("plan", *quiet)
    assert shown.splitlines()[-1].startswith(f"{COLOUR}33m# 1 file to change, ")
    fake_node.done("-n", *quiet)
    assert f"{COLOUR}32m# nothing to do: the node is in sync{COLOUR}0m" in (
        fake_node.on_terminal("plan", *quiet)
    )
    node.source.rename(node.root / "elsewhere")
    lines = fake_node.on_terminal("plan", *quiet).splitlines()
    assert lines[0].startswith(f"{COLOUR}31m# `run` would refuse: ")
    assert lines[-1] == f"{COLOUR}31m# `run` would refuse, although the node is in sync{COLOUR}0m"


def test_findings_and_choices_have_colours(node: fake_node.Node, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    words = [f"--host-root={tmp_path}", f"--socket={tmp_path}/none"]
    shown = fake_node.on_terminal("diagnose", *words)
    assert f"{COLOUR}31m  1. --socket={tmp_path}/none: no container runtime answers" in shown
    assert f"{COLOUR}36m     -> " in shown
    detected = fake_node.on_terminal("detect", *words)
    assert detected.startswith(f"{COLOUR}31mno container runtime found{COLOUR}0m")
    assert f"{COLOUR}31mchosen: none{COLOUR}0m" in detected
    assert COLOUR not in fake_node.cli("detect", *words).stdout
    assert COLOUR not in fake_node.cli("diagnose", *words).stdout


@pytest.mark.parametrize("value", ["1", ""])
def test_no_color_is_heeded(quiet: list[str], value: str) -> None:
    shown = fake_node.on_terminal("plan", *quiet, environment={"NO_COLOR": value})
    assert COLOUR not in shown
    assert "default_runtime_name" in shown


def test_a_state_is_coloured_on_a_terminal(quiet: list[str]) -> None:
    assert fake_node.on_terminal("status", *quiet).startswith(f"{COLOUR}33mnot in sync{COLOUR}0m")


def test_a_dumb_terminal_gets_no_colours(quiet: list[str]) -> None:
    assert COLOUR not in fake_node.on_terminal("plan", *quiet, environment={"TERM": "dumb"})


def test_colours_are_not_in_json(quiet: list[str]) -> None:
    assert COLOUR not in fake_node.on_terminal("plan", "-o", "json", *quiet)


def test_a_reader_that_goes_away_is_no_bug(node: fake_node.Node, quiet: list[str]) -> None:
    node.config.write_bytes(fake_node.KUBEADM + b"# filler\n" * 20_000)
    words = " ".join(f"'{word}'" for word in fake_node.program("plan", *quiet))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} | true"],
        env=fake_node.ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# --- help ---------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code() -> None:
    shown = fake_node.done("--help").stdout
    for word in ("run", "plan", "revert", "status", "--version"):
        assert re.search(rf"^\s+{word}\b", shown, re.MULTILINE), word
    for code in "012345":
        assert re.search(rf"\b{code} ", shown[shown.index("Exit codes:") :])


def test_help_of_a_command_names_its_options_and_their_variables() -> None:
    shown = "".join(
        fake_node.done("run", "--help-all").stdout.split()
    )  # a long name may be wrapped
    assert "-o,--output" in shown
    for row in SETTINGS:
        assert row.flags[0] in shown
        assert all(variable in shown for variable in row.variables)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.flags[0])
def test_help_and_the_table_in_docs_say_the_same(row: Setting) -> None:
    context = click.Context(click.Command("run"), terminal_width=10_000, max_content_width=10_000)
    shown = parser._option(row).get_help_record(context)
    assert shown is not None
    names, told = shown
    (line,) = [each for each in _documented() if each.startswith(f"| `{row.flags[0]}`")]
    default = ",".join(row.default) if isinstance(row.default, tuple) else row.default
    facts = [
        row.help,
        *row.variables,
        row.pending,
        *([f"For {row.only} only."] if row.only else []),
    ]
    for fact in facts:
        assert fact in told
        assert fact in line
    for flag in row.flags:
        assert flag in names.replace(",", " ").split()
        assert f"`{flag}`" in line
    assert all(choice in names and choice in line for choice in row.choices)
    if default not in (None, ""):
        text = str(default).lower() if isinstance(default, bool) else str(default)
        assert f"[default: {text}]" in told
        assert f"`{text}`" in line


def test_every_option_stands_under_one_heading() -> None:
    names = [name for _, group in GROUPS for name in group]
    assert sorted(names) == sorted(row.name for row in SETTINGS)
    shown = fake_node.done("run", "--help-all").stdout
    assert [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "] == [
        "Options:",
        *(f"{title}:" for title, _ in GROUPS),
    ]


def _documented() -> list[str]:
    return (fake_node.CHECKOUT / "docs/options.md").read_text(encoding="utf-8").splitlines()


def test_debug_tells_where_every_value_comes_from(quiet: list[str]) -> None:
    override = '{"registry": {"auth": "hunter2hunter2"}}'
    variables = {"RUNTIME_CONFIG_OVERRIDE": override, "NRI_NAMESPACE": "gpu-operator"}
    told = fake_node.done("plan", "--debug", *quiet, environment=variables).stderr
    assert "D cli: --restart-mode: none\n" in told
    assert "D cli: NRI_NAMESPACE: gpu-operator\n" in told
    assert "D cli: NRI_NAMESPACE has no effect without the NRI plugin\n" in told
    assert "RUNTIME_CONFIG_OVERRIDE" in told
    assert "hunter2" not in told.replace("plan", "")


def test_the_list_of_commands_is_not_cut_short() -> None:
    shown = fake_node.done("--help").stdout
    assert "..." not in shown[shown.index("Commands:") :]


def test_the_children_of_a_process_that_stays_take_its_options() -> None:
    """They are given the same words."""
    taken = {name: {p.name for p in parser.app().commands[name].params} for name in ("run", "sync")}
    assert taken["run"] <= taken["sync"]


def test_the_version_is_said() -> None:
    assert fake_node.done("--version").stdout == f"nvidia-toolkit, version {__version__}\n"


@pytest.mark.parametrize("name", ["nvidia-toolkit", "nvidia-ctk-installer"])
def test_both_names_are_installed(name: str) -> None:
    program = fake_node.BIN / name
    assert program.exists(), "install the project first: make test does"
    shown = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=20, check=True
    )
    assert __version__ in shown.stdout


# --- completion ---------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """Return what bash is offered behind a line."""
    words = line.split(" ")
    asked = {
        "_NVIDIA_TOOLKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return fake_node.done(environment=asked).stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nvidia-toolkit re", ["plain,revert"]),
        ("nvidia-toolkit plan --restart-m", ["plain,--restart-mode"]),
        ("nvidia-toolkit plan --restart-mode s", ["plain,signal", "plain,systemd"]),
        ("nvidia-toolkit plan --debug --on-d", ["plain,--on-drift"]),
        ("nvidia-toolkit plan --config ex", ["file,ex"]),
        ("nvidia-toolkit completion z", ["plain,zsh"]),
    ],
)
def test_words_are_completed(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    assert (
        f"_NVIDIA_TOOLKIT_COMPLETE={shell}_complete" in fake_node.done("completion", shell).stdout
    )


def test_bash_takes_the_script() -> None:
    script = fake_node.done("completion", "bash").stdout
    asked = (
        f"{script}\nexport PATH={fake_node.BIN}:$PATH\nCOMP_WORDS=(nvidia-toolkit"
        " stat)\nCOMP_CWORD=1\n"
    )
    asked += '_nvidia_toolkit_completion nvidia-toolkit\necho "${COMPREPLY[@]}"\n'
    shown = subprocess.run(
        ["bash", "-c", asked],
        env=fake_node.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert shown.stdout == "status\n"


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "status"])
def test_pending_changes_can_be_an_exit_code(quiet: list[str], command: str) -> None:
    assert fake_node.cli(command, *quiet).returncode == 0
    assert fake_node.cli(command, "--exit-code", *quiet).returncode == 8
    fake_node.done("-n", *quiet)
    assert fake_node.cli(command, "--exit-code", *quiet).returncode == 0


def test_0_done(quiet: list[str]) -> None:
    assert fake_node.cli("-n", *quiet).returncode == 0


def test_1_a_bug_is_told_with_its_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: list[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(commands, "make_plan", fail)
    with pytest.raises(SystemExit) as caught:
        main.main(["plan", *quiet])
    shown = capsys.readouterr()
    assert caught.value.code == 1
    assert (
        shown.err.splitlines()[-2]
        == f"error: this is a bug in nvidia-toolkit {__version__}: ZeroDivisionError('on purpose')"
    )
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--no-such-option"], "there is no option --no-such-option"),
        (["plan", "--pid-file=/x"], "error: --pid-file=/x: the file name must be toolkit.pid"),
        (
            ["--runtime=podman", "-n"],
            "--runtime=podman: must be one of auto, docker, containerd, crio",
        ),
        (["plan", "-o", "yaml"], "--output=yaml: must be one of text, json"),
        (["plann"], "error: there is no command 'plann'"),
        (
            ["plan", "--bogus"],
            "hint: `nvidia-toolkit plan --help` lists the commands and options\n",
        ),
        (["--debug", "plan"], "options before the command plan"),
    ],
    ids=[
        "unknown option",
        "pid file",
        "runtime",
        "output",
        "unknown command",
        "the way out",
        "options before the command",
    ],
)
def test_2_wrong_usage(words: list[str], said: str) -> None:
    done = fake_node.cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_3_not_understood(node: fake_node.Node, quiet: list[str]) -> None:
    node.config.write_bytes(b"version = \n")
    assert fake_node.cli("plan", *quiet).returncode == 3


def test_4_a_step_failed(node: fake_node.Node) -> None:
    assert fake_node.cli("-n", *node.options()).returncode == 4


def test_5_locked(node: fake_node.Node, quiet: list[str]) -> None:
    # One that is told to stop before its first round has ended ends by that signal.
    with pods.staying([*quiet, "--log-format=json"]) as first:
        done = fake_node.cli("-n", *quiet)
        assert done.returncode == 5
        assert (
            done.stderr == f"error: another instance (PID {first.pid}) holds {node.pid_file}\n"
            "hint: wait for it to end, or end it; nothing was changed\n"
        )
        assert fake_node.cli("plan", *quiet).returncode == 0, "looking needs no lock"
        assert fake_node.cli("revert", *quiet).returncode == 5
        first.says("set up; watching", timeout=60)
        assert first.end() == 0


# --- an ordinary user ---------------------------------------------------------------------------


@fake_node.needs_root
@pytest.mark.parametrize("command", ["plan", "status"])
def test_an_ordinary_user_can_look(command: str) -> None:
    words = [
        "--runtime=containerd",
        f"--config={fake_node.CHECKOUT}/examples/containerd/config.toml",
        "--socket=/nonexistent/containerd.sock",
        "--toolkit-install-dir=/nonexistent/nvidia",
        "--pid-file=/nonexistent/toolkit.pid",
    ]
    can = subprocess.run(
        [*fake_node.NOBODY, *fake_node.program("--version")],
        capture_output=True,
        text=True,
        check=False,
    )
    if can.returncode != 0:
        pytest.skip(
            f"an ordinary user cannot run this Python or read this checkout: {can.stderr[-200:]}"
        )
    done = fake_node.cli(command, *words, prefix=fake_node.NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "default_runtime_name" in done.stdout or command == "status"


@pytest.mark.parametrize("hidden", ["source", "socket", "config"])
def test_what_an_ordinary_user_may_not_see_is_no_bug(node: fake_node.Node, hidden: str) -> None:
    place = {"source": node.source, "socket": node.socket.parent, "config": node.config.parent}[
        hidden
    ]
    place.chmod(0)
    done = fake_node.cli("plan", *node.options(), prefix=fake_node.ORDINARY)
    place.chmod(0o755)
    assert "this is a bug" not in done.stderr
    assert done.returncode in {0, 3}, done.stderr
    # To somebody who is not root in any case, the plan says that, and asks nothing of the runtime.
    if hidden != "socket" or os.geteuid() == 0:
        assert str(place) in done.stdout + done.stderr


def test_a_diagnosis_needs_nobody_to_remember_the_runtime(
    node: fake_node.Node, quiet: list[str]
) -> None:
    fake_node.done("-n", *quiet)
    words = [word for word in quiet if not word.startswith("--runtime=")]
    told = json.loads(fake_node.done("diagnose", "-o", "json", *words).stdout)
    assert told["tool"]["runtime"] == "containerd"
    assert told["configuration"]["config"] == str(node.config)
    node.state.write_bytes(b"torn")
    assert fake_node.done("diagnose", *words).stdout.startswith("findings")
