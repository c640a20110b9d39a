"""Which runtime is set up: what was named, else the kubelet's, else that of before, else the only one.

Nothing is guessed: where two could be meant, or where what was named is not what
the node has, it is said, and nothing is changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from runtimes import distributions, registry
from runtimes.distributions import DISTRIBUTIONS
from runtimes.model import ReachKind, RuntimeName
from toolkit import detect, journal, kubelet, sockets
from toolkit.candidates import Judged, Use, described, judged, named, paths, used
from toolkit.errors import Contradiction, NodeNotUnderstood, StepFailed, UsageProblem
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.settings import Settings, resolve
from toolkit.sockets import Daemon

_LIST: Final = "`nvidia-toolkit detect` shows everything that was looked at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to be set up, and why. `found` is what the settings get where nothing was given."""

    runtime: RuntimeName
    found: Mapping[str, str]
    why: str
    against: tuple[Contradiction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the choice is made from: what was asked, the node, what it was before, and the kubelet's word.

    `before` is empty or what the settings got when the node was set up.
    """

    settings: Settings
    options: Mapping[str, str]
    environment: Mapping[str, str]
    host: Host
    before: Mapping[str, str]
    use: Use | None

    def of(self, runtime: RuntimeName) -> Settings:
        """Return the settings as they are for a runtime, with the variables that count for it alone."""
        return resolve({**self.options, "runtime": runtime}, self.environment)


def settle(
    asked: Settings,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    last: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings for the runtime that is to be set up, with what speaks against them.

    `last` is what the settings got from the node in the round before: it holds as long
    as no kubelet says otherwise, whether the runtime answers or not. Raises UsageProblem
    where there is nothing to choose, or more than one.
    """
    question = ask(asked, options, environment, last)
    if asked.flag("no_runtime_config"):
        name = (
            asked.text("runtime") if asked.is_given("runtime") else question.before.get("runtime", "docker")
        )
        return resolve(options, environment, {"runtime": name})
    chosen = choose(question)
    if not asked.is_given("runtime"):
        told = logging.DEBUG if last else logging.INFO
        LOGGER.log(told, "the runtime is %s: %s", chosen.runtime, chosen.why)
    return settled(question, chosen)


def ask(
    asked: Settings,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    last: Mapping[str, str] | None = None,
) -> Question:
    """Return what the choice is made from. Raises UsageProblem where the node's root cannot be seen."""
    host = Host(root=detect.root(asked))
    use = None if asked.flag("no_runtime_config") else used(host, kubelet.words())
    return Question(
        settings=asked,
        options=options,
        environment=environment,
        host=host,
        before=dict(last or {}) or _remembered(asked, host),
        use=use,
    )


def settled(question: Question, chosen: Choice) -> Settings:
    """Return the settings that a choice makes."""
    settings = resolve(question.options, question.environment, chosen.found)
    return replace(settings, against=chosen.against)


def choose(question: Question) -> Choice:
    """Return the runtime that was named, else what `auto` means on this node. Raises UsageProblem."""
    settings, host, use = question.settings, question.host, question.use
    if settings.is_given("runtime"):
        return _named(question, settings, RuntimeName(settings.text("runtime")))
    if settings.is_given("socket"):
        chosen = _by_socket(question)
        return _named(question, question.of(chosen), chosen)
    before = question.before.get("runtime")
    if use is not None and before not in (None, use.runtime):
        problem = f"this node was set up for {before}, but {use.words} now"
        way_out = f"take that back first: nvidia-toolkit revert --runtime {before}; then run again"
        return Choice(
            runtime=RuntimeName(before),
            found=question.before,
            why="it was set up for that",
            against=(Contradiction(problem, way_out),),
        )
    if use is not None:
        return _with_its_socket(question, _used(host, use))
    if before:
        return Choice(
            runtime=RuntimeName(before),
            found=question.before,
            why="the node was set up for it, and no kubelet says otherwise",
        )
    return _with_its_socket(question, _only(host, judged(host, _all(question), ())))


# --- what was named ---------------------------------------------------------------------------------


def _named(question: Question, settings: Settings, runtime: RuntimeName) -> Choice:
    """Return the choice of a runtime that was named, and what speaks against it."""
    host, use = question.host, question.use
    if settings.is_given("socket"):
        return _at(question, settings, runtime)
    is_beside = settings.flag("beside_kubelet")
    if use is not None and use.runtime == runtime and not is_beside:
        return _used(host, use)
    against: tuple[Contradiction, ...] = ()
    if use is not None and not is_beside:
        against = (_not_the_kubelet_s(settings, runtime, use),)
    if question.before.get("runtime") == runtime:
        found: Mapping[str, str] = question.before
    else:
        found = _usual(question, runtime)
        against = against or tuple(_absent(question, settings, found))
    return Choice(runtime=runtime, found=found, why="it was named", against=against)


def _at(question: Question, settings: Settings, runtime: RuntimeName) -> Choice:
    """Return the choice of a runtime at a socket that was given."""
    host, use = question.host, question.use
    local = Path(settings.text("socket"))
    socket = host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    given = f"{settings.origins['socket']}={local}"
    if sockets.is_rootless(local, socket):
        raise UsageProblem(
            [f"{given}: this is a user's own (rootless) runtime, which has no part in a Kubernetes node"],
            hint="name the socket of the node's own runtime",
        )
    against = list(_against(question, settings, runtime, socket))
    other = sockets.expected(host, socket)
    if not against and other not in (None, runtime):
        there = sockets.look(host, other or runtime, local, socket)
        if there.is_runtime and there.owner is not None:
            who = f"{there.runtime} (PID {there.owner.pid}, {there.owner.executable})"
            against.append(
                Contradiction(
                    f"{settings.by('runtime')}={runtime}: {local} is answered by {who}",
                    f"say --runtime={there.runtime}, or name the socket of {runtime}",
                )
            )
    if not against and use is None:
        against += _absent(question, settings, {"socket": str(local)})
    row = sockets.row(host, runtime, socket)
    found = paths(host, runtime, row, None)
    return Choice(runtime=runtime, found=found, why=f"{given} was given", against=tuple(against))


def _by_socket(question: Question) -> RuntimeName:
    """Return the runtime of a socket that was given without one. Raises UsageProblem."""
    host, local = question.host, Path(question.settings.text("socket"))
    socket = host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    known = sockets.expected(host, socket)
    if known is None and local.exists() and not sockets.is_rootless(local, socket):
        for hint in sorted(RuntimeName, key=lambda name: name.value not in local.name):
            found = sockets.look(host, hint, local, socket)
            known = known or found.answers
            if found.owner is not None:
                break
    before = question.before.get("runtime")
    if known is None and before is None and not sockets.is_rootless(local, socket):
        raise UsageProblem(
            [f"{question.settings.origins['socket']}={local}: no container runtime answers there"],
            hint=f"say which one it is with --runtime, or name another socket; {_LIST}",
        )
    return known or RuntimeName(before or RuntimeName.CONTAINERD)


def _against(
    question: Question, settings: Settings, runtime: RuntimeName, socket: str
) -> Iterator[Contradiction]:
    """Yield what the kubelet's word has against a runtime at a socket."""
    host, use = question.host, question.use
    if use is None or settings.flag("beside_kubelet"):
        return
    if use.runtime != runtime:
        yield _not_the_kubelet_s(settings, runtime, use)
    elif (
        runtime is not RuntimeName.DOCKER
        and use.seen_at.exists()
        and os.path.exists(settings.text("socket"))
        and not sockets.same(host, use.socket, socket)
    ):
        yield Contradiction(
            f"{settings.origins['socket']}={settings.text('socket')}: {use.words}",
            f"leave the socket out, or say --socket={use.seen_at}; with --beside-kubelet the one that was"
            " given is set up all the same, and no pod of the kubelet runs through it",
        )


def _not_the_kubelet_s(settings: Settings, runtime: RuntimeName, use: Use) -> Contradiction:
    return Contradiction(
        f"{settings.by('runtime')}={runtime}: {use.words}",
        f"leave the runtime out, or say --runtime={use.runtime}; with --beside-kubelet {runtime} is set up"
        " all the same, and no pod of the kubelet runs through it",
    )


def _absent(question: Question, settings: Settings, found: Mapping[str, str]) -> Iterator[Contradiction]:
    """Yield that a runtime which was named is not on the node at all, while another one runs there."""
    host, runtime = question.host, RuntimeName(settings.text("runtime"))
    row = distributions.plain(runtime)
    socket = found.get("socket") or settings.text("socket")
    node_path = host.node(Path(socket), *row.sockets)
    is_usual = sockets.expected(host, node_path) == runtime
    if not is_usual or sockets.exists(host, node_path) or question.before.get("runtime") == runtime:
        return
    if any(host.executable(name) for name in registry.ADAPTERS[runtime].executables):
        return
    others = [each for each in sockets.everywhere(host) if each.is_runtime and each.runtime != runtime]
    if others:
        yield Contradiction(
            f"{settings.by('runtime')}={runtime}: there is no {runtime} on this node, but"
            f" {' and '.join(described(each) for each in others)}",
            f"leave the runtime out, or name the one that is there; {_LIST}",
        )


def _usual(question: Question, runtime: RuntimeName) -> Mapping[str, str]:
    """Return where a runtime is that was named without a socket: the usual place, else the only other one.

    Raises UsageProblem where it runs more than once.
    """
    host, row = question.host, distributions.plain(runtime)
    rows = [each for each in DISTRIBUTIONS if each.runtime == runtime and each is not row]
    if not any(sockets.exists(host, path) for each in rows for path in each.sockets):
        return {"runtime": runtime}
    found = judged(host, sockets.everywhere(host), ())
    mine = [each for each in found if each.daemon.runtime == runtime]
    if not any(not each.refusal for each in mine):
        return {"runtime": runtime}
    return _only(host, mine).found


# --- what is there ----------------------------------------------------------------------------------


def _used(host: Host, use: Use) -> Choice:
    found = paths(host, use.runtime, use.row, None if use.word.docker else use.seen_at)
    return Choice(runtime=use.runtime, found=found, why=use.words)


def _only(host: Host, found: Sequence[Judged]) -> Choice:
    """Return the only daemon that may be chosen. Raises UsageProblem where there is none or more."""
    able = {each.daemon.owner.pid: each.daemon for each in found if each.daemon.owner and not each.refusal}
    if len(able) == 1:
        (each,) = able.values()
        return Choice(
            runtime=each.runtime,
            found=paths(host, each.runtime, each.row, each.seen_at),
            why=f"it is the only one that answers, on {each.socket}, and no kubelet says otherwise",
        )
    if not able:
        refused = [f"{each.daemon.socket}: {each.refusal}" for each in found]
        raise UsageProblem(
            ["no container runtime is found on this node, and none was named", *refused],
            hint=f"start it, or say --runtime (docker, containerd or crio) and --socket; {_LIST}",
        )
    who = " and ".join(described(each) for each in able.values())
    raise UsageProblem(
        [f"{len(able)} container runtimes answer on this node, and no kubelet says which one it uses: {who}"],
        hint="name the one that is meant: "
        + " or ".join(f"--socket={each.seen_at} ({named(each.row)})" for each in able.values()),
    )


def _all(question: Question) -> tuple[Daemon, ...]:
    """Return what is on every known socket; where a variable names a runtime's socket, on that alone."""
    found: list[Daemon] = []
    for runtime in registry.ADAPTERS:
        settings = question.of(runtime)
        if settings.is_given("socket"):
            local = Path(settings.text("socket"))
            found += [sockets.look(question.host, runtime, local)] if local.exists() else []
        else:
            found += sockets.everywhere(question.host, runtime)
    return tuple(found)


def _with_its_socket(question: Question, chosen: Choice) -> Choice:
    """Return the choice with the socket that a variable names for this runtime, such as CONTAINERD_SOCKET."""
    settings = question.of(chosen.runtime)
    if not settings.is_given("socket"):
        return chosen
    return replace(_named(question, settings, chosen.runtime), why=chosen.why)


def _remembered(asked: Settings, host: Host) -> dict[str, str]:
    """Return the runtime that the record says was set up, and where; nothing where nothing was."""
    try:
        record = journal.load(Path(asked.text("toolkit_install_dir")).absolute())
    except (NodeNotUnderstood, StepFailed):
        return {}  # who needs it says so
    if record.runtime not in registry.ADAPTERS:
        return {}
    runtime = RuntimeName(record.runtime)
    ours = {each.path for each in record.owned}
    rows = [row for row in DISTRIBUTIONS if row.runtime == runtime]
    found = [row for row in rows if ours & {row.config, row.drop_in, *row.reach.drop_ins}]
    # One that makes the handlers itself has no file of ours; the unit that was restarted tells.
    found += [row for row in rows if row.reach.kind is ReachKind.MADE and record.unit in row.units]
    if not found and not (record.owned or record.open):
        return {}
    return paths(host, runtime, next(iter(found), distributions.plain(runtime)), None)
