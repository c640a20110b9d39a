"""What starts a runtime again is decided by its processes and its unit; nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from toolkit.node import command, processes
from toolkit.node.host import Host
from toolkit.runtime.supervision import supervisor, systemd
from toolkit.runtime.supervision.supervisor import Ancestor, Supervisor

PID = 100
INIT = Ancestor(1, "systemd")
NO_UNIT = "PID 100 does not belong to a systemd service"
CONTAINERD = "{ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; ignore_errors=no }"
AGENT = "{ path=/opt/agent.sh ; argv[]=/opt/agent.sh ; ignore_errors=no }"


def decided(
    unit: str | None,
    *ancestors: Ancestor,
    problem: str = "",
    **properties: Any,
) -> Supervisor:
    process = processes.RuntimeProcess(
        pid=PID, start_ticks=1, executable="/usr/bin/containerd", argv=("containerd",), unit=unit
    )
    texts = {name: str(text) for name, text in properties.items()}
    return supervisor.decide(
        process, ancestors, texts, names=frozenset({"containerd"}), problem=problem
    )


# --- whose service it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "ancestors", "main", "command_line"),
    [
        pytest.param("containerd.service", [INIT], PID, CONTAINERD, id="its main process"),
        pytest.param("my.service", [INIT], PID, AGENT, id="whatever the unit is called"),
        pytest.param("k3s.service", [Ancestor(50, "k3s-server"), INIT], 50, AGENT, id="k3s"),
        pytest.param("my.service", [Ancestor(50, "k3s-server"), INIT], 50, AGENT,
                     id="k3s elsewhere"),
        pytest.param("rke2-agent.service", [Ancestor(50, "rke2"), INIT], 50, AGENT, id="rke2"),
        pytest.param("k0sworker.service", [Ancestor(50, "k0s"), INIT], 50, AGENT, id="k0s"),
        pytest.param(
            "my.service", [Ancestor(50, "sh"), INIT], 50,
            "{ path=/bin/sh ; argv[]=/bin/sh -c modprobe overlay; /usr/bin/containerd ; x }",
            id="a shell that the unit has start it",
        ),
    ],
)  # fmt: skip
def test_a_unit_whose_service_it_is_can_be_restarted(
    unit: str, ancestors: list[Ancestor], main: int, command_line: str
) -> None:
    found = decided(unit, *ancestors, MainPID=main, Restart="always", ExecStart=command_line)
    assert (found.unit, found.no_unit) == (unit, "")


def test_the_name_of_a_runtime_among_the_arguments_of_a_program_is_no_proof() -> None:
    command_line = "{ path=/opt/agent ; argv[]=/opt/agent --runtime /usr/bin/containerd ; x }"
    found = decided("a.service", Ancestor(50, "agent"), INIT, MainPID=50, ExecStart=command_line)
    assert found.unit is None


@pytest.mark.parametrize(
    ("ancestors", "main", "why"),
    [
        pytest.param([INIT], 50, "the main process is PID 50", id="started in the background"),
        pytest.param(
            [Ancestor(50, "agent.sh"), INIT],
            50,
            "the main process is PID 50",
            id="a child of the agent",
        ),
        pytest.param([INIT], 0, "the main process has ended", id="a unit that ran once"),
    ],
)
def test_a_unit_that_only_started_it_is_not_its_service(
    ancestors: list[Ancestor], main: int, why: str
) -> None:
    found = decided(
        "node-agent.service", *ancestors, MainPID=main, Restart="always", ExecStart=AGENT
    )
    no_unit = f"PID 100 was started in node-agent.service, but is not its service: {why}"
    assert (found.unit, found.no_unit, found.after_signal) == (None, no_unit, "")
    parent = ancestors[0].words()
    assert found.doubt == f"{no_unit}, and its parent {parent} is not known to restart it"


# --- after SIGHUP ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        ({"Restart": "always"}, ""),
        # systemd counts the end by SIGHUP as a clean exit (systemd.service(5)).
        ({"Restart": "on-success"}, ""),
        ({"Restart": "on-failure"}, "a.service has Restart=on-failure"),
        ({"Restart": "on-abnormal"}, "a.service has Restart=on-abnormal"),
        ({"Restart": "no"}, "a.service has Restart=no"),
        ({}, "a.service has Restart=no"),
        ({"Restart": "no", "RestartForceExitStatus": "1 SIGHUP"}, ""),
        (
            {"Restart": "always", "RestartPreventExitStatus": "SIGHUP"},
            "a.service has RestartPreventExitStatus=SIGHUP",
        ),
    ],
)
def test_systemd_starts_a_service_again_as_its_unit_says(
    settings: Mapping[str, str], doubt: str
) -> None:
    found = decided("a.service", INIT, MainPID=PID, ExecStart=CONTAINERD, **settings)
    assert (found.unit, found.doubt, found.after_signal) == (
        "a.service",
        doubt,
        "" if doubt else "a.service",
    )


@pytest.mark.parametrize("name", ["runsv", "s6-supervise", "supervise-daemo", "supervise", "k0s"])
def test_another_supervisor_starts_its_child_again(name: str) -> None:
    found = decided(None, Ancestor(7, name), Ancestor(2, "runsvdir"), INIT)
    assert (found.after_signal, found.doubt) == (f"{name} (PID 7)", "")
    assert found.no_unit == "PID 100 does not belong to a systemd service"


@pytest.mark.parametrize(
    "name", ["sh", "python3", "sshd", "systemd", "init", "runsvdir", "containerd-shim"]
)
def test_any_other_parent_is_not_known_to(name: str) -> None:
    found = decided(None, Ancestor(7, name), INIT)
    assert found.after_signal == ""
    assert found.doubt == f"{NO_UNIT}, and its parent {name} (PID 7) is not known to restart it"


@pytest.mark.parametrize(
    ("unit", "above", "settings", "again", "doubt"),
    [
        ("k3s.service", INIT, {"MainPID": 50, "Restart": "always"}, "k3s.service", ""),
        ("k3s.service", INIT, {"MainPID": 50, "Restart": "on-failure"}, "k3s.service", ""),
        ("k3s.service", INIT, {"MainPID": 50, "Restart": "no"}, "", "k3s.service has Restart=no"),
        (None, Ancestor(9, "supervise-daemo"), {}, "supervise-daemo (PID 9)", ""),
        (
            None,
            INIT,
            {},
            "",
            f"{NO_UNIT}, and its parent systemd (PID 1) is not known to restart it",
        ),
    ],
)
def test_k3s_ends_with_its_containerd_and_needs_a_supervisor_itself(
    unit: str | None, above: Ancestor, settings: Mapping[str, Any], again: str, doubt: str
) -> None:
    found = decided(unit, Ancestor(50, "k3s-server"), above, **settings)
    assert (found.after_signal, found.doubt) == (again, doubt)


def test_a_systemd_that_is_not_seen_is_not_trusted_to_start_it() -> None:
    found = decided("containerd.service", INIT, problem="the node's systemd is not visible")
    assert (found.unit, found.after_signal) == ("containerd.service", "")
    assert found.doubt == "the node's systemd is not visible"


def test_a_shell_that_started_it_may_do_anything_after_a_signal() -> None:
    shell = "{ path=/bin/sh ; argv[]=/bin/sh -c /usr/bin/containerd || sleep 9 ; x }"
    found = decided(
        "a.service", Ancestor(50, "sh"), INIT, MainPID=50, Restart="always", ExecStart=shell
    )
    assert (found.unit, found.after_signal) == ("a.service", "")
    assert found.doubt == "PID 100 is not the main process of a.service"


# --- what hangs on the unit -----------------------------------------------------------------------


def test_units_are_followed_as_long_as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    units = {
        "containerd.service": {"ActiveState": "active", "RequiredBy": "docker.service off.service"},
        "docker.service": {
            "ActiveState": "active",
            "BoundBy": "app.service",
            "ConsistsOf": "part.service",
        },
        "off.service": {"ActiveState": "inactive", "RequiredBy": "behind.service"},
        "app.service": {"ActiveState": "reloading", "PropagatesStopTo": "containerd.service"},
        "part.service": {"ActiveState": "failed"},
        "behind.service": {"ActiveState": "active"},
    }
    asked: list[tuple[str, ...]] = []

    def run(argv: list[str], **more: Any) -> command.Result:
        words = argv[argv.index("--") + 1 :]
        asked.append(tuple(words))
        names = argv[2].removeprefix("--property=").split(",")
        blocks = [
            "\n".join(f"{name}={units[unit].get(name, '')}" for name in names) for unit in words
        ]
        return command.Result(argv=tuple(argv), code=0, out="\n\n".join(blocks) + "\n", err="")

    monkeypatch.setattr(command, "run", run)
    found = systemd.dependents(Host(root=Path("/")), "containerd.service", timeout=1)
    assert found == ("app.service", "docker.service")
    assert asked == [
        ("containerd.service",),
        ("docker.service", "off.service"),
        ("app.service", "part.service"),
    ]
