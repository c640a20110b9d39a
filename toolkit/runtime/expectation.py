"""The state that a runtime must reach after a change, checked against what the daemon reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass
from runtimes.model import Desired, Effective
from toolkit.deadline import Deadline
from toolkit.errors import ReloadError
from toolkit.runtime import health
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.state.record import UNTOLD, Baseline

_PAUSE: Final = 0.05
_LEAST: Final = 1.0
SETTLING: Final = 8.0

NOT_TAKEN_UP: Final = "the runtime did not apply the change"
NOT_AS_WANTED: Final = "the runtime is not in the expected state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The expected state of a runtime.

    Of our handlers, those in `present` must exist and those in `absent` must not; all others must
    stay. `default` is the configured default handler. If it is None, the default must stay what it
    was, unless it was one of our handlers or one of `raised`, the handlers that we set as the
    default. `baseline` is the state before the change, None if it is unknown. `files` is the
    content that the runtime must have loaded. `cri` is whether it must serve CRI; None means only
    if it did before. `without_us` is what its files say without our keys, empty if unknown; with
    `is_removal`, only this counts.
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
    without_us: Effective = UNTOLD
    is_removal: bool = False

    def unmet(self, adapter: Adapter, now: Health) -> list[str]:
        """Return a message for each expectation that the runtime does not meet."""
        problems: list[str] = []
        if self.files is not None and adapter.confirmation is not None:
            problems += adapter.not_applied(self.desired, self.files, now.body)
        if self.baseline is not None:
            problems += self._regressions(self.baseline, now)
        if self.cri and not now.supports_cri:
            problems.append(f"the runtime does not serve CRI, though it was enabled: {now.no_cri}")
        known = now.effective.handlers
        if known is None and now.supports_cri and self.present:
            problems.append("the runtime does not list its handlers")
        if known is not None and now.supports_cri:
            problems += [
                f"the runtime does not know the handler {h}" for h in sorted(self.present - known)
            ]
            problems += [
                f"the runtime still knows the handler {h}" for h in sorted(self.absent & known)
            ]
        problems += planner.regressions(
            self.ours, self.default, self._before(), now.effective, raised=self.raised
        )
        return list(dict.fromkeys(problems))

    def _before(self) -> tuple[Effective, ...]:
        """Return the configurations that the runtime may not fall behind.

        A runtime that had our keys may itself have lacked what the files without them define.
        """
        if self.baseline is None:
            return ()
        known = (self.without_us,) if self.without_us != UNTOLD else ()
        return (
            known if self.is_removal and known else (self.baseline.has, self.baseline.files, *known)
        )

    def _regressions(self, before: Baseline, now: Health) -> list[str]:
        problems = []
        if before.supports_cri and not now.supports_cri and self.cri is None:
            problems.append(f"the runtime no longer serves CRI: {now.no_cri}")
        if before.has_network and now.network:
            problems.append(f"the network is no longer ready: {now.network}")
        return problems


def confirmed(
    target: Target,
    adapter: Adapter,
    expected: Expected,
    deadline: Deadline,
    *,
    subject: str = NOT_TAKEN_UP,
) -> Health:
    """Wait until the runtime is healthy and meets the expectation, and return its health.

    Raises ReloadError, with `subject` and every problem, at the deadline, or some seconds after the
    runtime became healthy: by then it has loaded its configuration, and waiting longer would only
    delay the rollback.
    """
    settling = None
    while True:
        now = health.query(target, adapter, timeout=deadline.at_least(_LEAST))
        problems = [*now.problems] or expected.unmet(adapter, now)
        if not problems:
            return now
        if not now.problems:
            settling = settling or Deadline(SETTLING)
        if deadline.is_over or (settling is not None and settling.is_over):
            raise ReloadError(
                f"{subject}: {'; '.join(problems)}",
                hint=target.log_hint,
            )
        deadline.pause(_PAUSE)
