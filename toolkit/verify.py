"""What the running daemon itself says: it, and not the file, decides whether a change was taken up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.model import Desired
from toolkit import health
from toolkit.detect import Scene
from toolkit.errors import NotReloaded
from toolkit.health import Health
from toolkit.memory import Baseline
from toolkit.stop import Patience

_PAUSE: Final = 0.05
_LEAST: Final = 1.0
_SETTLING: Final = 8.0

NOT_TAKEN_UP: Final = "the runtime did not take the change up"
NOT_AS_WANTED: Final = "the runtime is not as wanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a runtime has to be like.

    `ours` are the names of handlers that may come and go, `present` those of
    them that have to be there and `absent` those that may not. `default` is the
    handler asked for as the default one; None: the one that was it stays, unless
    we `raised` it.
    `baseline` is how the runtime was before; None: nobody knows. `files` are
    what it has to have read. `cri` tells whether it has to serve CRI; None: if it did.
    """

    desired: Desired
    ours: frozenset[str]
    present: frozenset[str]
    absent: frozenset[str]
    default: str | None = None
    raised: frozenset[str] = frozenset()
    baseline: Baseline | None = None
    files: Mapping[str, bytes | None] | None = None
    cri: bool | None = None

    def lacking(self, adapter: Adapter, now: Health) -> list[str]:
        """Return where a runtime is not like that, in words."""
        problems: list[str] = []
        if self.files is not None and adapter.confirmation is not None:
            problems += adapter.unconfirmed(self.desired, self.files, now.body)
        if self.baseline is not None:
            problems += self._worse(self.baseline, now)
        if self.cri and not now.speaks_cri:
            problems.append(f"the runtime does not serve CRI, though it was enabled: {now.no_cri}")
        known = now.has.handlers
        if known is None and now.speaks_cri and self.present:
            problems.append("the runtime does not name its handlers")
        if known is not None and now.speaks_cri:
            problems += [f"the runtime does not know the handler {h}" for h in sorted(self.present - known)]
            problems += [f"the runtime still knows the handler {h}" for h in sorted(self.absent & known)]
        before = (self.baseline.has, self.baseline.files) if self.baseline is not None else ()
        problems += planner.unwell(self.ours, self.default, before, now.has, raised=self.raised)
        return list(dict.fromkeys(problems))

    def _worse(self, before: Baseline, now: Health) -> list[str]:
        problems = []
        if before.speaks_cri and not now.speaks_cri and self.cri is None:
            problems.append(f"the runtime does not serve CRI any more: {now.no_cri}")
        if before.has_network and now.network:
            problems.append(f"the network was ready before: {now.network}")
        return problems


def confirmed(
    place: Scene, adapter: Adapter, expected: Expected, patience: Patience, *, subject: str = NOT_TAKEN_UP
) -> Health:
    """Wait until the runtime is well and as expected, and return how it is.

    Raises NotReloaded, with the subject and everything that is wrong, where it is not so when
    patience is over, or some seconds after the runtime said that it is well:
    then it has read what it reads, and a node in a bad state should not wait.
    """
    settling = None
    while True:
        now = health.once(place, adapter, timeout=patience.allowing(_LEAST))
        problems = [*now.ailments] or expected.lacking(adapter, now)
        if not problems:
            return now
        if not now.ailments:
            settling = settling or Patience(_SETTLING)
        if patience.is_over or (settling is not None and settling.is_over):
            raise NotReloaded(
                f"{subject}: {'; '.join(problems)}",
                hint="look at the runtime's own log",
            )
        patience.pause(_PAUSE)
