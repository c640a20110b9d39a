"""The upstream installer and this program with the same options, each on a copy of a node.

The upstream installer runs as it is. Of this program the plan is taken, so nothing is restarted.
Neither has a runtime's binary to ask, nor a driver: what those decide has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import click

from runtimes import registry
from runtimes.model import RuntimeName
from tests.support import artifacts, binaries
from tests.unit.test_settings import PEER, parsed
from toolkit.artifacts.toolkit_config import CONFIG
from toolkit.deadline import Cancellation
from toolkit.errors import ToolkitError
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.settings.resolve import resolve

RUNTIMES: Final = ("containerd", "docker", "crio")
_CRI: Final = 'plugins."io.containerd.grpc.v1.cri".containerd'
_CONFIGS: Final[Mapping[str, str]] = {
    "containerd": (
        f"""\
version = 2
[{_CRI}]
default_runtime_name = "runc"
[{_CRI}.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{_CRI}.runtimes.runc.options]
SystemdCgroup = true
"""
    ),
    "docker": '{"log-driver": "journald"}',
    "crio": (
        """\
[crio.runtime]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "/usr/bin/runc"
"""
    ),
}
_COMMON: Final[Mapping[str, str]] = {
    "--no-daemon": "true",
    "--config": "@/etc/config",
    "--drop-in-config": "@/etc/conf.d/99-nvidia.toml",
    "--socket": "@/sock",
    "--restart-mode": "none",
    "--config-source": "file",
    "--toolkit-source-root": "@/source",
    "--toolkit-install-dir": "@/nvidia",
    "--pid-file": "@/run/toolkit.pid",
    "--host-root": "/",
    "--cdi-output-dir": "@/cdi",
    "--driver-root": "@/driver",
    "--driver-root-ctr-path": "@/driver",
}
"""What each run gets, unless a case gives it otherwise; `@` stands for the node's directory."""
_ONLY: Final[Mapping[str, Mapping[str, str]]] = {"crio": {"--hooks-dir": "@/hooks"}}
VALUES: Final[Mapping[str, str]] = {
    **_COMMON,
    "--no-runtime-config": "true",
    "--enable-nri-plugin": "true",
    "--nri-plugin-index": "11",
    "--nri-socket": "@/nri.sock",
    "--nri-namespace": "a",
    "--nri-management-cdi-device-namespaces": "a,b",
    "--toolkit-install-dir": "@/other",
    "--toolkit-package-type": "rpm",
    "--pid-file": "@/other/toolkit.pid",
    "--debug": "true",
    "--driver-root": "@/other",
    "--driver-root-ctr-path": "@/other",
    "--dev-root": "@/dev-root",
    "--dev-root-ctr-path": "@/dev-root",
    "--nvidia-container-runtime.debug": "/var/log/a.log",
    "--nvidia-container-runtime.log-level": "debug",
    "--nvidia-container-runtime.mode": "cdi",
    "--nvidia-container-runtime.modes.cdi.default-kind": "example.com/gpu",
    "--nvidia-container-runtime.modes.cdi.annotation-prefixes": "a.example/,b.example/",
    "--nvidia-container-runtime-modes.cdi.annotation-prefixes": "a.example/,b.example/",
    "--nvidia-container-runtime.runtimes": "/usr/bin/youki,runc",
    "--nvidia-container-runtime-hook.skip-mode-detection": "false",
    "--nvidia-container-cli.debug": "/var/log/b.log",
    "--accept-nvidia-visible-devices-envvar-when-unprivileged": "false",
    "--accept-nvidia-visible-devices-as-volume-mounts": "true",
    "--cdi-enabled": "true",
    "--cdi-output-dir": "@/other",
    "--cdi-kind": "example.com/gpu",
    "--create-device-nodes": "none",
    "--drop-in-config": "@/etc/conf.d/50-other.toml",
    "--drop-in-config-host-path": "/etc/on-the-node/50-other.toml",
    "--executable-path": "/usr/bin/runtime",
    "--enable-cdi-in-runtime": "true",
    "--runtime-name": "gpu",
    "--use-legacy-config": "true",
    "--runtime-type": "io.containerd.runc.v1",
    "--runtime-config-override": '{"options": {"SystemdCgroup": false}}',
    "--hooks-dir": "@/other",
    "--hook-filename": "other.json",
    "--config-mode": "hook",
    "--set-as-default": "false",
    "--ignore-errors": "true",
    "--opt-in-features": "disable-imex-channel-creation",
}
"""A value for each of upstream's options but `--runtime`, whose values are the runtimes."""
EXTRA: Final = (
    ("--runtime-class=nvidia-cdi",),
    ("--runtime-class=nvidia-legacy",),
    ("--runtime-class=nvidia-cdi", "--set-as-default=false"),
    ("--runtime-class=",),
    ("--drop-in-config=",),
    ("--restart-mode=other",),
    ("--no-such-option",),
    ("a-word",),
    ("--no-daemon=yes",),
    ("--cdi-enabled", "--cdi-output-dir="),
    ("NVIDIA_RUNTIME_SET_AS_DEFAULT=",),
    ("CONTAINERD_SET_AS_DEFAULT=",),
    ("ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED=",),
    ("NVIDIA_RUNTIME_NAME=", "CONTAINERD_RUNTIME_CLASS=gpu"),
    ("CONTAINERD_SET_AS_DEFAULT=true", "DOCKER_SET_AS_DEFAULT=false"),
)
"""Values and combinations that the options alone do not show."""
_OF_DOCKER: Final = (("--config-source=command",), ("--config-source=other",))
"""With another runtime it depends on this machine whether there is a program to ask."""


@dataclass(frozen=True, slots=True)
class Case:
    """A runtime, and the options and variables that are given beside the common ones."""

    runtime: str
    given: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.runtime, *self.given))


def cases() -> Iterator[Case]:
    """Yield a case for each spelling of each option on each runtime, and the extra ones."""
    for runtime in RUNTIMES:
        for flags, variables, _ in PEER:
            first = flags.partition(" ")[0]
            value = runtime if first == "--runtime" else VALUES[first]
            for name in (*flags.split(), *variables.split()):
                yield Case(runtime, (f"{name}={value}",))
        for given in (*EXTRA, *(_OF_DOCKER if runtime == "docker" else ())):
            yield Case(runtime, given)


@dataclass(frozen=True, slots=True)
class Effect:
    """The runtime's configuration, the toolkit's, and the hook, as trees; None if it is refused."""

    runtime: Any
    toolkit: Any
    hooks: Any


@cache
def installer() -> Path:
    """Return the upstream installer, built on first use. Raises Unavailable."""
    return binaries.toolkit("nvidia-ctk-installer")


def upstream_help() -> list[tuple[str, str]]:
    """Return the options with their aliases, and the variables, that upstream's --help shows."""
    said = subprocess.run(
        (installer(), "--help"), capture_output=True, text=True, check=True
    ).stdout
    rows = [
        re.split(r"\s{3,}", line.strip()) for line in said.splitlines() if line.startswith("   --")
    ]
    found = []
    for names, *rest in rows:
        flags = dict.fromkeys(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", names))
        variables = re.search(r"\[(\$[A-Z_, $]+)\]$", rest[-1] if rest else names)
        found.append(
            (" ".join(flags), variables[1].replace("$", "").replace(",", "") if variables else "")
        )
    return found


def node(place: Path, runtime: str) -> Path:
    """Make a node below a directory: a configuration and a toolkit to install."""
    (place / "etc").mkdir(parents=True)
    (place / "etc/config").write_text(_CONFIGS[runtime], encoding="utf-8")
    artifacts.make(place / "source")
    (place / "driver").mkdir()
    return place


def words(case: Case, place: Path) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables of a case, on a node below a directory."""
    given = [each.replace("@", str(place)) for each in case.given]
    arguments = [each for each in given if not re.match("[A-Z_]+=", each)]
    environment = dict(each.split("=", 1) for each in given if each not in arguments)
    names = {each.partition("=")[0] for each in given}
    common = {"--runtime": case.runtime, **_COMMON, **_ONLY.get(case.runtime, {})}
    if case.runtime == "docker":
        del common["--drop-in-config"]
    rest = [
        f"{option}={value.replace('@', str(place))}"
        for option, value in common.items()
        if not names & _spellings(option)
    ]
    return [*rest, *arguments], environment


@cache
def _spellings(option: str) -> frozenset[str]:
    row = next((flags, variables) for flags, variables, _ in PEER if option in flags.split())
    return frozenset((*row[0].split(), *row[1].split()))


def upstream(case: Case, place: Path) -> Effect | None:
    """Run the upstream installer; return its effect, None if it failed."""
    arguments, environment = words(case, node(place, case.runtime))
    done = subprocess.run(
        (installer(), *arguments), env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    written = {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    config = next((data for path, data in written.items() if path.endswith(CONFIG)), None)
    return _effect(case.runtime, place, written, config)


def here(case: Case, place: Path) -> Effect | None:
    """Return the effect that a run of this program would have; None if it would be refused."""
    arguments, environment = words(case, node(place, case.runtime))
    try:
        settings = resolve(parsed(*arguments), environment)
        adapter = registry.ADAPTERS[RuntimeName(settings.runtime)]
        plan = make_plan(Context(settings=settings, adapter=adapter, stop=Cancellation()))
        if plan.source_problem is not None:
            return None
    except (ToolkitError, click.ClickException):
        return None
    host = plan.target.host
    written = {
        str(host.local(path)): data for path, data in plan.files_after.items() if data is not None
    }
    if not written:  # --no-runtime-config
        written = {f"{place}/etc/config": (place / "etc/config").read_bytes()}
    entries = plan.version.entries if plan.version is not None else ()
    config = next((entry.content for entry in entries if entry.name == CONFIG), None)
    return _effect(case.runtime, place, written, config if isinstance(config, bytes) else None)


def _effect(runtime: str, place: Path, files: Mapping[str, bytes], config: bytes | None) -> Effect:
    """Return an effect, with the node's directory left out of every path."""

    def plain(data: bytes) -> str:
        return data.decode().replace(str(place), "")

    toolkit = tomllib.loads(plain(config)) if config else None
    if runtime == "docker":
        daemon = json.loads(plain(files.get(f"{place}/etc/config", b"{}")))
        for handler in daemon.get("runtimes", {}).values():
            handler.pop("args", None)  # upstream writes an empty list
        return Effect(daemon, toolkit, {})
    tree: Any = {}
    for path in sorted(files, key=lambda path: "/conf.d/" in path):
        if path.startswith(f"{place}/etc/") and not path.endswith(".json"):
            tree = _merged(tree, tomllib.loads(plain(files[path])))
    tree.pop("imports", None)
    hooks = {
        path.removeprefix(str(place)): json.loads(plain(data))
        for path, data in files.items()
        if path.endswith(".json") and "/nvidia/" not in path and "/source/" not in path
    }
    return Effect(_without_empty(tree), toolkit, hooks)


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merged(one.get(key), other.get(key)) for key in {**one, **other}}
    return one if other is None else other


def _without_empty(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    reduced = {key: _without_empty(item) for key, item in tree.items()}
    return {key: item for key, item in reduced.items() if item not in ({}, [])}


def difference(one: Any, other: Any, where: str = "") -> Sequence[str]:
    """Return what differs between two effects or trees, one line a leaf: upstream first."""
    if isinstance(one, Effect) and isinstance(other, Effect):
        return [
            line
            for name in ("runtime", "toolkit", "hooks")
            for line in difference(getattr(one, name), getattr(other, name), name)
        ]
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in {**one, **other}
            for line in difference(one.get(key), other.get(key), f"{where}.{key}")
        ]
    if one == other:
        return []
    shown = (
        "refused" if isinstance(each, type(None)) and not where else each for each in (one, other)
    )
    return ["{}: {} | {}".format(where, *shown)]
