"""Which daemons may be meant where nobody says so, and which one the node's kubelet uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from runtimes import distributions
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import RuntimeName
from toolkit import owner, plugins, sockets
from toolkit.errors import StepFailed
from toolkit.host import Host
from toolkit.kubelet import Word
from toolkit.sockets import Daemon

_SOON: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """The runtime that a kubelet uses, by its own word: the socket as the node names it and as seen here."""

    word: Word
    runtime: RuntimeName
    row: Distribution
    socket: str
    seen_at: Path

    @property
    def words(self) -> str:
        """Return it as a part of a sentence."""
        return f"the kubelet (PID {self.word.pid}) uses {named(self.row)} on {self.socket}, by {self.word.by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A daemon, whether it may be chosen where nobody says which, why not, and which kubelets use it."""

    daemon: Daemon
    refusal: str
    users: tuple[Use, ...]


def used(host: Host, words: Sequence[Word]) -> Use | None:
    """Return the runtime that the node's kubelet uses; None where none says so, or two say different ones."""
    uses = [found for word in words if (found := use_of(host, word))]
    return uses[0] if uses and all(each.socket == uses[0].socket for each in uses) else None


def use_of(host: Host, word: Word) -> Use | None:
    """Return what a kubelet's word means on this node; None where that cannot be told."""
    if word.docker:
        row = distributions.plain(RuntimeName.DOCKER)
        socket = row.sockets[0]
        return Use(word=word, runtime=row.runtime, row=row, socket=socket, seen_at=sockets.seen(host, socket))
    if not word.endpoint:
        return _embedded(host, word)
    local = sockets.seen(host, word.endpoint)
    as_it_sees = Path(f"/proc/{word.pid}/root{word.endpoint}")
    if not os.path.exists(local) and os.path.exists(as_it_sees):
        local = as_it_sees
    runtime, daemon = sockets.expected(host, word.endpoint), None
    if runtime is None:
        found = sockets.look(host, RuntimeName.CONTAINERD, local, word.endpoint)
        runtime, daemon = found.answers, found.owner
    if runtime is None:
        return None
    row = sockets.row(host, runtime, word.endpoint, daemon)
    return Use(word=word, runtime=runtime, row=row, socket=word.endpoint, seen_at=local)


def judged(host: Host, daemons: Sequence[Daemon], uses: Sequence[Use]) -> tuple[Judged, ...]:
    """Return each daemon with what keeps it from being chosen by `auto`, if anything does."""
    dockers = [each for each in daemons if each.is_runtime and each.runtime is RuntimeName.DOCKER]
    found = []
    for each in daemons:
        users = tuple(use for use in uses if sockets.same(host, use.socket, each.socket))
        refusal = _refusal(host, each, dockers, is_used=bool(users))
        found.append(Judged(daemon=each, refusal=refusal, users=users))
    return tuple(found)


def named(row: Distribution) -> str:
    """Return a runtime with the distribution that it is of, for people."""
    is_plain = row is distributions.plain(row.runtime)
    return str(row.runtime) if is_plain else f"{row.runtime} of {row.name}"


def described(each: Daemon) -> str:
    """Return a daemon as a part of a sentence."""
    who = f" (PID {each.owner.pid}, {each.owner.executable})" if each.owner else ""
    return f"{named(each.row)} on {each.socket}{who}"


def paths(host: Host, runtime: RuntimeName, row: Distribution, local: Path | None) -> dict[str, str]:
    """Return what settings get that were not given; nothing but the name where all is in its usual place."""
    found: dict[str, str] = {"runtime": str(runtime)}
    is_plain = row is distributions.plain(runtime)
    if local is not None and not (is_plain and str(local) == row.sockets[0]):
        found["socket"] = str(local)
    if not is_plain:
        found.setdefault("socket", str(sockets.seen(host, row.sockets[0])))
        found["config"] = str(host.seen(row.config))
        found["drop_in_config"] = str(host.seen(row.drop_in)) if row.drop_in else ""
    return found


def _embedded(host: Host, word: Word) -> Use | None:
    """Return the containerd that a program with a kubelet inside has started for itself (k3s)."""
    for row in DISTRIBUTIONS:
        for socket in row.sockets if row.name == word.embedder else ():
            if not sockets.exists(host, socket):
                continue
            found = sockets.look(host, row.runtime, sockets.seen(host, socket), socket)
            above = sockets.parent(found.owner) if found.owner and found.is_runtime else None
            if above is not None and above[0] == word.pid:
                by = replace(word, by=f"its being started by {word.program}")
                return Use(word=by, runtime=row.runtime, row=row, socket=socket, seen_at=found.seen_at)
    return None


def _refusal(host: Host, each: Daemon, dockers: Sequence[Daemon], *, is_used: bool) -> str:
    """Return why a daemon is not to be chosen; empty where it may be."""
    if each.owner is None or not each.is_runtime:
        return each.problem
    path, is_elsewhere = sockets.root(host, each.owner)
    if is_elsewhere:
        return f"its root ({path}) is not the node's, so neither are its files"
    if each.runtime is not RuntimeName.CONTAINERD:
        return ""
    above = sockets.parent(each.owner)
    if above is not None and above[1] == "dockerd":
        return f"dockerd (PID {above[0]}) has started it for itself"
    server = next((docker for docker in dockers if _serves(host, each, docker)), None)
    if server is None or server.owner is None or is_used or _has_cri(each):
        return ""
    return f"it serves Docker (PID {server.owner.pid}), and its CRI is switched off"


def _serves(host: Host, each: Daemon, docker: Daemon) -> bool:
    """Tell whether a containerd is the one that a dockerd uses, which by default is the usual one."""
    said = owner.argument(docker.owner, ("--containerd",))
    usual = distributions.plain(RuntimeName.CONTAINERD).sockets[0]
    return sockets.same(host, said.removeprefix("unix://") if said else usual, each.socket)


def _has_cri(each: Daemon) -> bool:
    """Tell whether a containerd serves CRI, or should and fails; one that does not say counts as doing so."""
    from toolkit import cri  # noqa: PLC0415 - it brings h2 along

    try:
        cri.version(each.seen_at, timeout=_SOON)
    except cri.CriFailed as error:
        if error.code == "UNIMPLEMENTED":
            return bool(plugins.cri_failure(each.seen_at, timeout=_SOON))
    except StepFailed:
        pass
    return True
