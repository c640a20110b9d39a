"""Verify each toolkit handler by starting a container through it, and decide what a failure means.

A container may fail to start for reasons that are not the handler: a missing image, a full disk, a
runtime that starts no container at all. Such a handler is *not verified*, with the reason, and
nothing is rolled back. A handler is at fault if the runtime rejects its configuration, or if a
container starts through the handler from which it inherits, or through the default handler that it
replaces, and none through it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from runtimes import planner
from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from toolkit.deadline import Deadline
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.reconcile import verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan
from toolkit.runtime import smoke_test
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.runtime.smoke_test import HandlerFailed, NotTried
from toolkit.settings.options import VerifyMode
from toolkit.state.readiness_record import NOT_VERIFIED, STARTED, STATUS

_LONGEST: Final = 30.0
"""Seconds that the start of one container may take, if `--reload-timeout` is not shorter."""
_LEAST: Final = 1.0
_SLICE: Final = "system.slice"
_LOW_LEVEL: Final = ("runc", "crun")
# What differs between two failures of the same kind: IDs, numbers, and the rest of the pod's name.
_VARIABLE: Final = lazy_pattern(r"[0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runtime:
    """The runtime through which containers are started, and its state."""

    context: Context
    target: Target
    state: Health
    image: str | None

    def start(self, handler: str) -> NotTried | HandlerFailed | StepError | None:
        """Start a container through a handler and return its failure, None if it started."""
        socket = self.target.socket
        limit = Deadline(min(_LONGEST, self.context.settings.reload_timeout), self.context.stop)
        timeout = limit.at_least(_LEAST)
        parent = _SLICE if handler in self.state.effective.systemd_cgroup else ""
        try:
            if self.context.adapter.supports_cri:
                smoke_test.start_pod(
                    socket, handler, cgroup_parent=parent, timeout=timeout, image=self.image
                )
            else:
                smoke_test.start_container(socket, handler, timeout=timeout)
        except StepError as error:
            LOGGER.debug("%s", error.message)
            return error
        return None


def verified(
    context: Context, plan: Plan, state: Health, recorded: object = None
) -> dict[str, str]:
    """Return the result for each handler: STARTED, STATUS, or "not verified: " with the reason.

    `state` is what the runtime reports now, `recorded` are the results of the readiness record: a
    reason that is recorded already is not logged again. Raises StepError if a handler is at fault.
    """
    handlers = sorted(verify.handlers(context, plan))
    if not handlers:
        return {}
    if context.settings.verify != VerifyMode.RUN or context.is_leaving:
        clear(context, plan.target)
        return dict.fromkeys(handlers, STATUS)
    if context.adapter.supports_cri and not state.supports_cri:
        return _not_verified(handlers, "the runtime does not serve CRI", recorded)
    runtime = _Runtime(
        context=context, target=plan.target, state=state, image=_image(context, plan, state)
    )
    clear(context, plan.target)
    began = time.monotonic()
    for at, handler in enumerate(handlers):
        if reason := _reason(runtime, handler, _baselines(context, plan, state)):
            # It is a reason of the node, so it applies to the handlers that follow as well.
            started = dict.fromkeys(handlers[:at], STARTED)
            return {**started, **_not_verified(handlers[at:], reason, recorded)}
    elapsed = time.monotonic() - began
    LOGGER.info(
        "a container was started through each handler in %.2f s: %s", elapsed, ", ".join(handlers)
    )
    return dict.fromkeys(handlers, STARTED)


def clear(context: Context, target: Target) -> None:
    """Remove the containers that a killed run may have left behind; a failure is only logged."""
    if target.process is None or context.settings.no_runtime_config:
        return
    remove = smoke_test.clear_pods if context.adapter.supports_cri else smoke_test.clear_containers
    try:
        remove(target.socket, timeout=verify.soon(context))
    except StepError as error:
        LOGGER.debug("containers that a killed run started may remain: %s", error.message)


def _not_verified(handlers: list[str], reason: str, recorded: object) -> dict[str, str]:
    """Return the results of handlers that could not be tried, and log why unless it is recorded."""
    results = dict.fromkeys(handlers, f"{NOT_VERIFIED}{reason}")
    is_known = isinstance(recorded, Mapping) and results.items() <= recorded.items()
    log = LOGGER.debug if is_known else LOGGER.warning
    log("not verified: no container was started through %s: %s", ", ".join(handlers), reason)
    return results


def _reason(runtime: _Runtime, handler: str, baselines: Sequence[str]) -> str:
    """Return why a handler could not be verified, empty if a container started through it.

    `baselines` are the handlers that it is compared with. Raises StepError if the handler is at
    fault.
    """
    failure = runtime.start(handler)
    if failure is None:
        return ""
    if isinstance(failure, NotTried):
        return failure.message
    references: dict[str, StepError] = {}
    for baseline in baselines:
        reference = runtime.start(baseline)
        if isinstance(reference, NotTried):
            return reference.message
        if reference is None:
            return _reason_again(runtime, handler, failure, baseline)
        references[baseline] = reference
    is_certain = isinstance(failure, HandlerFailed) and failure.is_certain
    kinds = {_kind(each, name) for name, each in references.items()}
    if not references or (is_certain and _kind(failure, handler) not in kinds):
        raise failure
    name, other = next(iter(references.items()))
    return f"{failure.message}, and through the handler {name} none starts either: {other.message}"


def _reason_again(runtime: _Runtime, handler: str, failure: StepError, baseline: str) -> str:
    """Return the same for a handler that failed, though a container starts through a `baseline`."""
    is_over = isinstance(failure, HandlerFailed) and failure.is_over
    again = failure if is_over else runtime.start(handler)  # The first may have been temporary.
    if again is None or isinstance(again, NotTried):
        return "" if again is None else again.message
    raise StepError(f"{again.message} (through the handler {baseline} one starts)", hint=again.hint)


def _kind(failure: StepError, handler: str) -> str:
    """Return the message of a failure without what differs between failures of the same kind."""
    return _VARIABLE.sub("#", re.sub(rf"\b{re.escape(handler)}\b", "HANDLER", failure.message))


def _baselines(context: Context, plan: Plan, state: Health) -> tuple[str, ...]:
    """Return the handlers to compare with: those that the toolkit's are made from.

    What is wrong with the handler from which they inherit is wrong with them as well, whatever
    starts through another one. If the runtime has none of these, a default or a low-level runtime
    has to do.
    """
    ours = plan.target.desired.names | planner.former(plan.observation)
    usable = (state.effective.handlers or frozenset()) - ours
    origin, transaction = plan.config_plan.origin, plan.record.open
    before = transaction.baseline.has.default if transaction is not None else None
    rest = (state.effective.default, before, *_LOW_LEVEL)
    found = (
        tuple(dict.fromkeys(each for each in group if each in usable))
        for group in ((origin.source, origin.default), rest)
    )
    return next((group for group in found if group), ())


def _image(context: Context, plan: Plan, state: Health) -> str | None:
    """Return the name of the sandbox image, None if neither the runtime nor its files say it."""
    if not context.adapter.supports_cri or state.effective.sandbox_image:
        return state.effective.sandbox_image
    return verify.effective(context.adapter, plan.target, plan.observation).sandbox_image
