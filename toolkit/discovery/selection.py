"""Select the runtime: the configured one, else kubelet's, else the recorded one, else the only one.

Nothing is guessed: if several runtimes are possible, or the settings do not match the node, this is
an error, and nothing is changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from runtimes import distributions, registry
from runtimes.dataclass import dataclass, replace
from runtimes.distributions import DISTRIBUTIONS
from runtimes.model import DeliveryKind, RuntimeName
from toolkit.discovery import endpoints
from toolkit.discovery.candidates import (
    Candidate,
    KubeletRuntime,
    assess,
    describe,
    distribution_name,
    kubelet_runtime,
    paths,
)
from toolkit.discovery.endpoints import Daemon
from toolkit.errors import Contradiction, NodeConfigError, StepError, UsageProblem
from toolkit.kube import kubelet
from toolkit.log import LOGGER
from toolkit.node.host import Host
from toolkit.runtime import locate
from toolkit.settings.defaults import runtime_default
from toolkit.settings.resolve import Settings, resolve
from toolkit.state import journal

_LIST: Final = "`nvidia-toolkit detect` lists all runtimes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected runtime, and the reason.

    `discovered` holds values for settings that were not given. `against` are contradictions between
    the settings and the node, with which the node must not be changed.
    """

    runtime: RuntimeName
    discovered: Mapping[str, str]
    why: str
    against: tuple[Contradiction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of the selection: the settings, the node, and the runtime that kubelet uses.

    `previous` holds the values of an earlier run on this node, empty if there was none.
    """

    settings: Settings
    options: Mapping[str, str]
    environment: Mapping[str, str]
    host: Host
    previous: Mapping[str, str]
    kubelet: KubeletRuntime | None

    def of(self, runtime: RuntimeName) -> Settings:
        """Return the settings for a runtime, including variables that apply only to it."""
        return resolve({**self.options, "runtime": runtime}, self.environment)


def select(
    asked: Settings,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    last: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings for the selected runtime, with any contradictions.

    `last` holds the values from the previous sync. They stay valid until a kubelet uses another
    runtime, even while the runtime does not answer. Raises UsageProblem if there is no runtime, or
    more than one.
    """
    inputs = inputs_of(asked, options, environment, last)
    if asked.runs_plugin:
        # An earlier run may have added handlers, which are removed; else it does not matter which
        # one it is.
        return resolve(options, environment, inputs.previous or {"runtime": RuntimeName.CONTAINERD})
    if asked.no_runtime_config:
        name = (
            asked.runtime if asked.is_given("runtime") else inputs.previous.get("runtime", "docker")
        )
        return resolve(options, environment, {"runtime": name})
    selection = choose(inputs)
    if not asked.is_given("runtime"):
        level = logging.DEBUG if last else logging.INFO
        LOGGER.log(level, "the runtime is %s: %s", selection.runtime, selection.why)
    return settings_of(inputs, selection)


def inputs_of(
    asked: Settings,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    last: Mapping[str, str] | None = None,
) -> Inputs:
    """Return the inputs of the selection. Raises UsageProblem if the node's root does not exist."""
    host = Host(root=locate.root(asked))
    used = None if asked.no_runtime_config else kubelet_runtime(host, kubelet.configs(host.root))
    return Inputs(
        settings=asked,
        options=options,
        environment=environment,
        host=host,
        previous=dict(last or {}) or _recorded(asked, host),
        kubelet=used,
    )


def settings_of(inputs: Inputs, selection: Selection) -> Settings:
    """Return the settings for a selection."""
    settings = resolve(inputs.options, inputs.environment, selection.discovered)
    return replace(settings, contradictions=selection.against)


def choose(inputs: Inputs) -> Selection:
    """Return the runtime in the settings, else the one that `auto` selects. Raises UsageProblem."""
    settings, host, used = inputs.settings, inputs.host, inputs.kubelet
    if settings.is_given("runtime"):
        return _named(inputs, settings, RuntimeName(settings.runtime))
    if settings.is_given("socket"):
        runtime = _runtime_at_socket(inputs)
        return _named(inputs, inputs.of(runtime), runtime)
    before = inputs.previous.get("runtime")
    if used is not None and before not in (None, used.runtime):
        problem = f"this node is configured for {before}, but {used.description} now"
        hint = (
            f"revert the node first with `nvidia-toolkit revert --runtime {before}`, then run again"
        )
        return Selection(
            runtime=RuntimeName(before),
            discovered=inputs.previous,
            why="the node is already configured for it",
            against=(Contradiction(problem, hint),),
        )
    if used is not None:
        return _with_its_socket(inputs, _of_kubelet(inputs, used))
    if before:
        return Selection(
            runtime=RuntimeName(before),
            discovered=inputs.previous,
            why="the node is already configured for it, and no kubelet uses another one",
        )
    return _with_its_socket(inputs, _only(host, assess(host, _all(inputs), ())))


# --- a runtime or socket from the settings --------------------------------------------------------


def _named(inputs: Inputs, settings: Settings, runtime: RuntimeName) -> Selection:
    """Return the selection of a runtime from the settings, with any contradictions."""
    used = inputs.kubelet
    if settings.is_given("socket"):
        return _at_socket(inputs, settings, runtime)
    is_allowed = settings.allow_non_kubelet_runtime
    if used is not None and used.runtime == runtime and not is_allowed:
        return _of_kubelet(inputs, used)
    against: tuple[Contradiction, ...] = ()
    if used is not None and not is_allowed:
        against = (_not_kubelet_runtime(settings, runtime, used),)
    if inputs.previous.get("runtime") == runtime:
        result: Mapping[str, str] = inputs.previous
    else:
        result = _unambiguous(inputs, runtime)
        against = against or tuple(_absent(inputs, settings, result))
    return Selection(
        runtime=runtime, discovered=result, why="it is set explicitly", against=against
    )


def _at_socket(inputs: Inputs, settings: Settings, runtime: RuntimeName) -> Selection:
    """Return the selection of a runtime at a socket from the settings, with any contradictions."""
    host, used = inputs.host, inputs.kubelet
    local = Path(settings.socket)
    socket = host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    given = f"{settings.origins['socket']}={local}"
    if endpoints.is_rootless(local, socket):
        raise UsageProblem(
            [f"{given}: this is a user's rootless runtime, which a Kubernetes node does not use"],
            hint="set --socket to the socket of the node's runtime",
        )
    against = list(_against(inputs, settings, runtime, socket))
    other = endpoints.expected(host, socket)
    if not against and other not in (None, runtime):
        daemon = endpoints.query(host, other or runtime, local, socket)
        if daemon.is_runtime and daemon.owner is not None:
            peer = f"{daemon.runtime} (PID {daemon.owner.pid}, {daemon.owner.executable})"
            against.append(
                Contradiction(
                    f"{settings.by('runtime')}={runtime}: {local} is answered by {peer}",
                    f"set --runtime={daemon.runtime}, or set --socket to the socket of {runtime}",
                )
            )
    if not against and used is None:
        against += _absent(inputs, settings, {"socket": str(local)})
    owner = endpoints.find_process(host, runtime, socket, local)
    result = paths(host, runtime, endpoints.row(host, runtime, socket, owner), None, owner)
    if owner is None:
        result = _with_recorded(inputs, result, local)
    return Selection(
        runtime=runtime, discovered=result, why=f"{given} is set", against=tuple(against)
    )


def _runtime_at_socket(inputs: Inputs) -> RuntimeName:
    """Return the runtime at a socket that is set without a runtime. Raises UsageProblem."""
    host, local = inputs.host, Path(inputs.settings.socket)
    socket = host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    known = endpoints.expected(host, socket)
    if known is None and local.exists() and not endpoints.is_rootless(local, socket):
        for hint in sorted(RuntimeName, key=lambda name: name.value not in local.name):
            daemon = endpoints.query(host, hint, local, socket)
            known = known or daemon.answers
            if daemon.owner is not None:
                break
    before = inputs.previous.get("runtime")
    if known is None and before is None and not endpoints.is_rootless(local, socket):
        raise UsageProblem(
            [f"{inputs.settings.origins['socket']}={local}: no container runtime answers there"],
            hint=f"set --runtime, or set --socket to another socket; {_LIST}",
        )
    return known or RuntimeName(before or RuntimeName.CONTAINERD)


def _against(
    inputs: Inputs, settings: Settings, runtime: RuntimeName, socket: str
) -> Iterator[Contradiction]:
    """Yield the contradiction if kubelet uses another runtime or another socket."""
    host, used = inputs.host, inputs.kubelet
    if used is None or settings.allow_non_kubelet_runtime:
        return
    if used.runtime != runtime:
        yield _not_kubelet_runtime(settings, runtime, used)
    elif (
        runtime is not RuntimeName.DOCKER
        and used.seen_at.exists()
        and os.path.exists(settings.socket)
        and not endpoints.same(host, used.socket, socket)
    ):
        yield Contradiction(
            f"{settings.origins['socket']}={settings.socket}: {used.description}",
            f"leave --socket out, or set --socket={used.seen_at}; use --allow-non-kubelet-runtime"
            " to configure the given one anyway, although kubelet's pods do not use it",
        )


def _not_kubelet_runtime(
    settings: Settings, runtime: RuntimeName, used: KubeletRuntime
) -> Contradiction:
    return Contradiction(
        f"{settings.by('runtime')}={runtime}: {used.description}",
        f"leave --runtime out, or set --runtime={used.runtime}; use --allow-non-kubelet-runtime to"
        f" configure {runtime} anyway, although kubelet's pods do not use it",
    )


def _absent(
    inputs: Inputs, settings: Settings, result: Mapping[str, str]
) -> Iterator[Contradiction]:
    """Yield the contradiction if the runtime is not on the node, while another one runs there."""
    host, runtime = inputs.host, RuntimeName(settings.runtime)
    row = distributions.plain(runtime)
    socket = result.get("socket") or settings.socket
    node_path = host.node(Path(socket), *row.sockets)
    is_default = endpoints.expected(host, node_path) == runtime
    if (
        not is_default
        or endpoints.exists(host, node_path)
        or inputs.previous.get("runtime") == runtime
    ):
        return
    if any(host.executable(name) for name in registry.ADAPTERS[runtime].executables):
        return
    others = [
        each for each in endpoints.query_all(host) if each.is_runtime and each.runtime != runtime
    ]
    if others:
        yield Contradiction(
            f"{settings.by('runtime')}={runtime}: {runtime} not found on this node, but"
            f" {' and '.join(describe(each) for each in others)}",
            f"leave --runtime out, or set it to the one that runs here; {_LIST}",
        )


def _unambiguous(inputs: Inputs, runtime: RuntimeName) -> Mapping[str, str]:
    """Return the paths of a runtime set without a socket: the defaults, else its only instance.

    Raises UsageProblem if several instances run.
    """
    host, row = inputs.host, distributions.plain(runtime)
    rows = [each for each in DISTRIBUTIONS if each.runtime == runtime and each is not row]
    if not any(endpoints.exists(host, path) for each in rows for path in each.sockets):
        return {"runtime": runtime}
    result = assess(host, endpoints.query_all(host), ())
    matching = [each for each in result if each.daemon.runtime == runtime]
    if not any(not each.refusal for each in matching):
        return {"runtime": runtime}
    return _only(host, matching).discovered


# --- a runtime found on the node ------------------------------------------------------------------


def _of_kubelet(inputs: Inputs, used: KubeletRuntime) -> Selection:
    result = paths(
        inputs.host,
        used.runtime,
        used.row,
        None if used.config.docker else used.seen_at,
        used.process,
    )
    if used.process is None:
        result = _with_recorded(inputs, result)
    return Selection(runtime=used.runtime, discovered=result, why=used.description)


def _with_recorded(
    inputs: Inputs, result: dict[str, str], socket: Path | None = None
) -> dict[str, str]:
    """Return the paths of a runtime whose daemon is unknown or down: those of the last run, if any.

    `socket` is the local path of the socket if the settings name it.
    """
    host, previous = inputs.host, inputs.previous
    if previous.get("runtime") != result["runtime"]:
        return result
    usual = [path for row in DISTRIBUTIONS for path in row.sockets]
    default = runtime_default(result["runtime"], "socket")
    now, before = str(socket or result.get("socket", default)), previous.get("socket", default)
    if not endpoints.same(host, host.node(Path(now), *usual), host.node(Path(before), *usual)):
        return result
    return result | {
        name: previous[name] for name in ("config", "drop_in_config") if name in previous
    }


def _only(host: Host, result: Sequence[Candidate]) -> Selection:
    """Return the only daemon that may be selected. Raises UsageProblem for none or several."""
    usable = {
        each.daemon.owner.pid: each.daemon
        for each in result
        if each.daemon.owner and not each.refusal
    }
    if len(usable) == 1:
        (each,) = usable.values()
        return Selection(
            runtime=each.runtime,
            discovered=paths(host, each.runtime, each.row, each.seen_at, each.owner),
            why=(
                f"it is the only one that answers, on {each.socket}, and no kubelet uses"
                " another one"
            ),
        )
    if not usable:
        refused = [f"{each.daemon.socket}: {each.refusal}" for each in result]
        raise UsageProblem(
            ["no container runtime found on this node, and none is configured", *refused],
            hint="start it, or set --runtime (containerd, crio or docker) and --socket"
            + (f"; {_LIST}" if refused else ""),
        )
    names = " and ".join(describe(each) for each in usable.values())
    count = len(usable)
    raise UsageProblem(
        [
            (
                f"{count} container runtimes answer on this node, and no kubelet says which one it"
                f" uses: {names}"
            )
        ],
        hint="select one of them: "
        + " or ".join(
            f"--socket={each.seen_at} ({distribution_name(each.row)})" for each in usable.values()
        ),
    )


def _all(inputs: Inputs) -> tuple[Daemon, ...]:
    """Return the daemons on all known sockets; for a runtime whose socket is set, only that one."""
    result: list[Daemon] = []
    for runtime in registry.ADAPTERS:
        settings = inputs.of(runtime)
        if settings.is_given("socket"):
            local = Path(settings.socket)
            result += [endpoints.query(inputs.host, runtime, local)] if local.exists() else []
        else:
            result += endpoints.query_all(inputs.host, runtime)
    return tuple(result)


def _with_its_socket(inputs: Inputs, selection: Selection) -> Selection:
    """Return a selection with the socket from its runtime's variable, such as CONTAINERD_SOCKET."""
    settings = inputs.of(selection.runtime)
    if not settings.is_given("socket"):
        return selection
    return replace(_named(inputs, settings, selection.runtime), why=selection.why)


def _recorded(asked: Settings, host: Host) -> dict[str, str]:
    """Return the runtime in the state file and its paths; empty if no runtime was configured."""
    try:
        record = journal.load(Path(asked.toolkit_install_dir).absolute())
    except (NodeConfigError, StepError):
        return {}  # later steps that need the state file report the error
    if record.runtime not in registry.ADAPTERS:
        return {}
    runtime = RuntimeName(record.runtime)
    paths_of_record = {each.path for each in record.owned}
    rows = [row for row in DISTRIBUTIONS if row.runtime == runtime]
    result = [
        row for row in rows if paths_of_record & {row.config, row.drop_in, *row.delivery.drop_ins}
    ]
    # We own no file of a distribution that generates the handlers itself; the recorded unit
    # identifies it.
    result += [
        row
        for row in rows
        if row.delivery.kind is DeliveryKind.AUTO_DETECTED and row.is_unit(record.unit or "")
    ]
    location = dict(record.location)
    if not result and not (record.owned or record.open or location):
        return {}
    known = paths(host, runtime, next(iter(result), distributions.plain(runtime)), None)
    if "socket" in location:
        known["socket"] = str(endpoints.local_path(host, location["socket"]))
    return known | {
        name: str(host.seen(location[name]))
        for name in ("config", "drop_in_config")
        if name in location
    }
