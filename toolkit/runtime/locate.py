"""Locate the container runtime on the node: its daemon, its binary, and the paths of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from runtimes import distributions, registry
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, field, replace
from runtimes.distributions import DISTRIBUTIONS
from runtimes.model import (
    Desired,
    Handler,
    Observation,
    RuntimeName,
)
from toolkit.artifacts import programs
from toolkit.artifacts.programs import BINARIES
from toolkit.deadline import Cancellation, Timeout
from toolkit.errors import Contradiction, UsageProblem
from toolkit.log import LOGGER
from toolkit.node import processes, socket_peer, trust
from toolkit.node.host import Host
from toolkit.runtime import config_paths
from toolkit.runtime.supervision import supervisor
from toolkit.settings import checks
from toolkit.settings.defaults import runtime_default
from toolkit.settings.layout import RunDir
from toolkit.settings.resolve import Settings
from toolkit.state import binary_cache

# --- a different runtime on the socket ------------------------------------------------------------


def answered(
    settings: Settings, adapter: Adapter, error: socket_peer.NoPeer
) -> tuple[Contradiction, ...]:
    """Return a contradiction if a runtime other than the configured one answers on the socket."""
    if not isinstance(error, socket_peer.UnexpectedPeer):
        return ()
    process = error.process
    others = registry.ADAPTERS.items()
    other = next(
        (name for name, each in others if processes.looks_like(process, each.executables)), None
    )
    if other is None:
        return ()
    socket = settings.socket
    return (
        Contradiction(
            f"{settings.by('runtime')}={adapter.name}: {socket} is answered by {other}"
            f" (PID {process.pid}, {process.executable})",
            f"set --runtime={other}, or set --socket to the socket of {adapter.name}",
        ),
    )


# --- the runtime on this node ---------------------------------------------------------------------

_SOON: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The runtime on this node, and the configuration that it should get.

    The paths in `desired` are node paths; `install_dir` and `socket` are local paths. `process` is
    the daemon that owns the socket; if it is None, `no_process` says why. `binary` is the node path
    of the program that validates a change, None if there is none. A query to it is cut short when
    `stop` is requested. `answers` caches its results. With `contradictions` between the settings
    and the node, the node may be inspected but not changed. `supervisor` is what starts the daemon
    again; it is None until it has to be known (see `supervised`). `launch_file` is where it is
    saved before the daemon is ended; if a killed run has ended it, `supervisor` is the one that was
    saved.
    """

    host: Host
    desired: Desired
    install_dir: Path
    launch_file: Path
    socket: Path
    process: processes.RuntimeProcess | None
    no_process: str
    binary: str | None
    notes: tuple[str, ...] = ()
    stop: Cancellation | None = None
    contradictions: tuple[Contradiction, ...] = ()
    answers: binary_cache.AnswerCache = field(
        default_factory=binary_cache.AnswerCache, compare=False
    )
    supervisor: supervisor.Supervisor | None = None

    @property
    def log_hint(self) -> str:
        """Return where the runtime's log is: by its unit, where it is known to have one."""
        unit = self.process.unit if self.process is not None else None
        return f"see `journalctl -u {unit}` on the node" if unit else "see the runtime's log"


def target(settings: Settings, adapter: Adapter, stop: Cancellation | None = None) -> Target:
    """Return the runtime on this node, without changing anything.

    Raises UsageProblem if the settings do not fit the node.
    """
    host = Host(root=root(settings))
    socket = config_paths.find_socket(settings, host)
    process, no_process, contradictions = None, "", settings.contradictions
    try:
        process = socket_peer.find(
            socket, adapter.executables, server_speaks_first=adapter.server_speaks_first
        )
    except socket_peer.NoPeer as error:
        no_process = f"{error} ({error.hint})" if error.hint else str(error)
        LOGGER.debug("%s", no_process)
        contradictions = contradictions or answered(settings, adapter, error)
    paths = config_paths.find(
        settings,
        host,
        adapter,
        process,
        config_argument=processes.argument(process, adapter.config_flags),
        directory_argument=processes.argument(process, adapter.directory_flags),
    )
    host = paths.host
    directory = _drop_in_directory(settings, host, adapter, process, paths.drop_in)
    hook = _hook_file(settings, host)
    if hook:
        host = host.mapped(str(Path(hook).parent), Path(settings.hooks_dir))
    install_dir = Path(os.path.abspath(settings.toolkit_install_dir))
    binary, notes = _binary(settings, host, adapter, process)
    launch_file = RunDir.of(settings.pid_file).launch
    notes = (paths.note, *notes) if paths.note else notes
    notes += tuple(
        f"{path} not found on the node: the handler {name} is not added"
        for name, path in programs.absent(settings, host, install_dir).items()
    )
    return Target(
        host=host,
        desired=replace(
            _desired(settings, host, paths.config, paths.drop_in, install_dir),
            directory=directory,
            delivery=paths.delivery,
        ),
        install_dir=install_dir,
        socket=socket,
        process=process,
        no_process=no_process,
        binary=binary,
        notes=notes,
        stop=stop,
        contradictions=contradictions,
        answers=binary_cache.of(settings, host, binary),
        supervisor=_ended(launch_file) if process is None else None,
        launch_file=launch_file,
    )


def _ended(launch_file: Path) -> supervisor.Supervisor | None:
    """Return the supervisor of a daemon that a killed run has ended, None if none has."""
    if not os.path.exists(launch_file):  # Also False where an ordinary user may not look.
        return None
    from toolkit.runtime.supervision import launch_file as of_file  # noqa: PLC0415  # Rarely used.

    return of_file.saved(launch_file)


def usual_units(target: Target) -> tuple[str, ...]:
    """Return the units that may start a runtime whose own unit is unknown: its distribution's."""
    desired = target.desired
    return distributions.of(desired.runtime, executable="", config=desired.config).units


def location(settings: Settings, target: Target) -> tuple[tuple[str, str], ...]:
    """Return the node paths at which the runtime was found, by setting, without the usual ones.

    Files that the settings name are left out: without the option they do not apply.
    """
    runtime, host = RuntimeName(settings.runtime), target.host
    sockets = (path for row in DISTRIBUTIONS if row.runtime == runtime for path in row.sockets)
    paths = {
        "socket": host.node(target.socket, *sockets),
        "config": target.desired.config,
        "drop_in_config": target.desired.drop_in,
    }
    return tuple(
        (name, path)
        for name, path in sorted(paths.items())
        if path.startswith("/")
        and not path.startswith("/proc/")
        and (name == "socket" or not settings.is_given(name))
        and path != runtime_default(runtime, name)
    )


def again(target: Target, adapter: Adapter, *, timeout: Timeout = _SOON) -> Target:
    """Return the target with the process that owns the socket now.

    `timeout` limits the search for it, in seconds.
    """
    try:
        process = socket_peer.find(
            target.socket,
            adapter.executables,
            server_speaks_first=adapter.server_speaks_first,
            timeout=timeout,
        )
    except socket_peer.NoPeer as error:
        return replace(target, process=None, no_process=str(error))
    is_same = target.process is not None and target.process.pid == process.pid
    supervisor = target.supervisor if is_same else None
    return replace(target, process=process, no_process="", supervisor=supervisor)


def supervised(target: Target, adapter: Adapter, timeout: Timeout = _SOON) -> Target:
    """Return the target with the supervisor of its daemon, which the node's systemd is asked for.

    A daemon that has ended keeps the supervisor that is known of it.
    """
    if target.process is None:
        return target
    found = supervisor.find(target.host, target.process, adapter.executables, timeout=timeout)
    return replace(target, supervisor=found)


def distrusted_files(target: Target, observation: Observation) -> tuple[str, ...]:
    """Return a message for each of the runtime's files that an untrusted user can write or replace.

    Missing files count too, because the change may create them.
    """
    host, root = target.host, Path("/")
    problems = []
    for path in observation.files:
        local = host.local(path)
        problems.append(trust.config_problem(path, host.root))
        problems.append(
            trust.config_problem(str(local), root) if host.is_here or host.places else ""
        )
        problems.append(trust.config_problem(str(host.target(local)), root))
    return tuple(dict.fromkeys(problem for problem in problems if problem))


def distrusted_place(target: Target) -> str:
    """Return why other users control the install directory on the node; empty if they do not.

    The directory as this process sees it is checked with the record in it. In a container its
    parents are those of the container.
    """
    host = target.host
    return "" if host.is_here else trust.place_problem(host.node(target.install_dir), host.root)


# --- paths and programs -------------------------------------------------------------------------


def root(settings: Settings) -> Path:
    """Return the local path of the node's root.

    Raises UsageProblem if `host_root` is not a directory, or an empty one: the image has one as the
    mount point of the node's root.
    """
    given = Path(settings.host_root)
    if given.is_dir():
        with suppress(PermissionError):
            if not os.listdir(given):
                raise UsageProblem(
                    [
                        (
                            f"--host-root={given} is empty: the node's root directory is not"
                            " mounted there"
                        )
                    ],
                    hint=(
                        "mount the node's / there, or use --host-root=/ to run directly on the node"
                    ),
                )
        return given
    if settings.is_given("host_root"):
        raise UsageProblem([f"--host-root={given}: no such directory"])
    return Path("/")


def _default_path(adapter: Adapter, name: str) -> str:
    return runtime_default(adapter.name, name)


def _binary(
    settings: Settings, host: Host, adapter: Adapter, process: processes.RuntimeProcess | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the node path of the binary that validates a change, and notes about the choice.

    Raises UsageProblem if the configured program does not exist.
    """
    sources = [source.split("=", 1)[0].strip() for source in settings.config_source]
    if "command" not in sources:
        return None, ()
    given = settings.executable_path
    if given:
        path = host.executable(given)
        if path is None and "file" not in sources:
            raise UsageProblem([f"--executable-path={given}: no such program on the node"])
        note = (
            ()
            if path
            else (f"{given}: no such program on the node; the change is not validated by it",)
        )
        return path, note
    if not host.is_here and os.geteuid() != 0:
        return None, (
            "only root can run the node's programs; the change is not validated by the runtime",
        )
    candidates = (
        [process.executable]
        if process and processes.looks_like(process, adapter.executables)
        else []
    )
    if process and candidates and os.path.basename(process.executable) not in adapter.executables:
        # A multi-call binary (k3s) acts as the runtime only if it is started under the runtime's
        # name.
        beside = os.path.dirname(process.executable)
        candidates += [f"{beside}/{name}" for name in sorted(adapter.executables)]
    # If the daemon is known, only its own program may validate the change, not another one of that
    # name.
    for candidate in candidates or sorted(adapter.executables):
        path = host.executable(candidate)
        if path is not None and os.path.basename(path) in adapter.executables:
            return path, ()
    return None, ()


def _desired(
    settings: Settings, host: Host, config: str, drop_in: str, install_dir: Path
) -> Desired:
    default = settings.runtime_class
    name = "nvidia" if default in BINARIES else default
    toolkit = programs.directory(settings, host, install_dir)
    absent = programs.absent(settings, host, install_dir)
    handlers = (
        Handler(name=name, binary=f"{toolkit}/{BINARIES['']}"),
        *(
            Handler(name=other, binary=f"{toolkit}/{binary}")
            for other, binary in BINARIES.items()
            if other and other not in absent
        ),
    )
    enables_cdi = settings.cdi_enabled and bool(settings.cdi_output_dir)  # as upstream
    if settings.is_given("enable_cdi_in_runtime"):
        enables_cdi = settings.enable_cdi_in_runtime
    return Desired(
        runtime=RuntimeName(settings.runtime),
        config=config,
        drop_in=drop_in,
        handlers=handlers,
        default=default if settings.set_as_default else None,
        hook=_hook_file(settings, host),
        hook_mode=settings.runtime == "crio" and settings.config_mode == "hook",
        hook_binary=f"{toolkit}/nvidia-container-runtime-hook",
        enable_cdi=True if enables_cdi else None,
        enable_cri=settings.enable_cri,
        runtime_type=settings.runtime_type,
        legacy=settings.use_legacy_config,
        annotations=tuple(f"{prefix}*" for prefix in settings.cdi_annotation_prefixes),
        override=_override(settings),
    )


def _override(settings: Settings) -> Mapping[str, Any]:
    text = settings.runtime_config_override
    return checks.read_override(text) if text else {}


def _drop_in_directory(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    process: processes.RuntimeProcess | None,
    drop_in: str,
) -> str:
    """Return the daemon's drop-in directory, with or without our drop-in; "" if there is none."""
    if not adapter.directory_flags:
        return ""
    if drop_in:
        return str(Path(drop_in).parent)
    given = processes.argument(process, adapter.directory_flags)
    return given or str(Path(_default_path(adapter, "drop_in_config")).parent)


def _hook_file(settings: Settings, host: Host) -> str:
    """Return the node path of the OCI hook file, or "" for a runtime other than CRI-O."""
    if settings.runtime != RuntimeName.CRIO:
        return ""
    filename = settings.hook_filename
    # The GPU Operator mounts that directory on OpenShift.
    return host.node(Path(settings.hooks_dir) / filename, f"/run/containers/oci/hooks.d/{filename}")
