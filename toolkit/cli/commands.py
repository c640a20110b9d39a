"""The commands. Imported only when a command runs, to keep probes and `--help` fast."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from runtimes.dataclass import dataclass, replace
from runtimes.model import RuntimeName
from runtimes.registry import ADAPTERS
from toolkit import log
from toolkit.deadline import Cancellation, end_at_once
from toolkit.discovery import selection
from toolkit.errors import (
    Answer,
    Contradiction,
    Interrupted,
    Locked,
    StepError,
    ToolkitError,
    UsageProblem,
)
from toolkit.node import lock
from toolkit.reconcile import preflight
from toolkit.reconcile.context import Context, budget_of
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.settings.resolve import Settings, resolve
from toolkit.state import readiness_probe

_FULL: Final = "full"
_FALLBACK: Final[Mapping[str, str]] = MappingProxyType({"runtime": "docker"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A parsed command line.

    `settings` were resolved from `options` and `environment`. `extra` holds the options of this
    command only, `arguments` the words behind the command's name, `log_options` the keyword
    arguments of `log.start`, `config_content` the root config that was read from standard input.
    """

    settings: Settings
    options: Mapping[str, str]
    environment: Mapping[str, str]
    extra: Mapping[str, Any]
    arguments: tuple[str, ...]
    log_options: Mapping[str, bool]
    config_content: bytes | None = None

    @property
    def is_json(self) -> bool:
        """Return whether the output is JSON."""
        return bool(self.extra.get("output") == "json")

    @property
    def lock(self) -> Path:
        """Return the path of the lock file of the node."""
        return Path(self.settings.pid_file)

    def context(
        self, stop: Cancellation | None = None, last: Mapping[str, str] | None = None
    ) -> Context:
        """Return the context of the command, with the adapter of the selected runtime.

        `last` holds what the previous sync detected about the runtime. Raises UsageProblem if no
        runtime can be selected.
        """
        settings = selection.select(self.settings, self.options, self.environment, last)
        for level, remark in () if last else settings.remarks:
            if (level, remark) not in self.settings.remarks:  # logged already
                log.LOGGER.log(level, "%s", remark)
        return Context(
            settings=settings,
            adapter=ADAPTERS[RuntimeName(settings.runtime)],
            stop=stop or Cancellation(),
            config_content=self.config_content,
        )

    def context_or_fallback(self) -> Context:
        """Return the context also if no runtime can be selected, to inspect or uninstall.

        The reason is then listed in the contradictions of the settings.
        """
        try:
            return self.context()
        except ToolkitError as error:
            problem = Contradiction(error.message, error.hint)
            settings = replace(
                resolve(self.options, self.environment, _FALLBACK), contradictions=(problem,)
            )
            return Context(
                settings=settings,
                adapter=ADAPTERS[RuntimeName(settings.runtime)],
                stop=Cancellation(),
                unselected=None if settings.is_given("runtime") else problem,
            )


def run(invocation: Invocation) -> int:
    """Configure the node, then continue as the agent unless --no-daemon. Raises ToolkitError."""
    from toolkit.node import service_manager  # noqa: PLC0415  # only this command has one

    with service_manager.starting("setting up this node"):
        return _run(invocation)


def keep(invocation: Invocation) -> int:
    """Run one sync as a child of the agent, and write the report to the file shared with it."""
    from toolkit.agent import child, sync  # noqa: PLC0415  # only this command has a report
    from toolkit.agent.report import from_json  # noqa: PLC0415

    stop = Cancellation()
    stop.listen()
    previous = from_json(child.read(child.REPORT))
    with lock.inherited(invocation.lock, child.LOCK):
        context = invocation.context(stop, previous.get("found"))
        report = sync.later(context, str(invocation.extra["kind"]), previous)
    child.write(child.REPORT, report)
    return int(report["code"])


def plan(invocation: Invocation) -> int:
    """Print what a run, or a revert, would change, and why it would be refused."""
    from toolkit.cli import output  # noqa: PLC0415

    end_at_once()
    if invocation.extra["revert"]:
        forecast = _revert_forecast(invocation)
    else:
        context = invocation.context()
        forecast = preflight.forecast(context, make_plan(context))
    asked = invocation.extra["diff"]
    if invocation.is_json:
        sys.stdout.write(output.plan_json(forecast, is_full=asked == _FULL))
    else:
        # A user at a terminal can read the files; elsewhere the output may be stored or
        # sent.
        is_full = asked == _FULL if asked else sys.stdout.isatty()
        sys.stdout.write(
            output.plan_text(forecast, colour=log.is_colourful(sys.stdout), is_full=is_full)
        )
    return _code(forecast) if invocation.extra["exit_code"] else 0


def _revert_forecast(invocation: Invocation) -> preflight.Forecast:
    """Return what `revert` would change. Raises ToolkitError."""
    if invocation.config_content is not None:
        raise UsageProblem(
            ["--config=-: a revert changes the files of this node"],
            hint="leave --config out, or --revert",
        )
    from toolkit.reconcile import uninstall  # noqa: PLC0415

    context = invocation.context_or_fallback()
    return uninstall.forecast(context.settings, context.adapter)


def status(invocation: Invocation) -> int:
    """Print whether the node is in sync and ready."""
    from toolkit.cli import output  # noqa: PLC0415
    from toolkit.reconcile import readiness  # noqa: PLC0415

    end_at_once()
    context = invocation.context()
    pending = make_plan(context)
    unready, verified = readiness.unready(context, pending), readiness.verified(context)
    forecast = preflight.Forecast(plan=pending)
    if not pending.is_noop:
        forecast = preflight.forecast(context, pending, patience=0)
    if invocation.is_json:
        sys.stdout.write(output.status_json(forecast, unready, verified))
    else:
        sys.stdout.write(
            output.status_text(forecast, unready, verified, colour=log.is_colourful(sys.stdout))
        )
    return _code(forecast) if invocation.extra["exit_code"] else 0


def _code(forecast: preflight.Forecast) -> int:
    """Return the exit code of --exit-code."""
    if forecast.blocked:
        return Answer.REFUSED
    return 0 if forecast.plan.is_done else Answer.PENDING


def detect(invocation: Invocation) -> int:
    """Print the runtimes on the node, and which one would be configured."""
    from toolkit.cli import output  # noqa: PLC0415
    from toolkit.discovery import inventory  # noqa: PLC0415 - no other command needs this module

    end_at_once()
    inputs = selection.inputs_of(invocation.settings, invocation.options, invocation.environment)
    with log.under_way("looking for container runtimes"):
        result = inventory.collect(inputs)
    sys.stdout.write(
        json.dumps(result, indent=2) + "\n"
        if invocation.is_json
        else output.text(result, colour=log.is_colourful(sys.stdout))
    )
    return Answer.REFUSED if result["choice"]["problems"] else 0


def diagnose(invocation: Invocation) -> int:
    """Print everything that a bug report should contain."""
    from toolkit.diagnose import collect, text  # noqa: PLC0415

    context = invocation.context_or_fallback()
    with log.under_way("collecting diagnostics"):
        result = collect.collect(context)
    sys.stdout.write(
        json.dumps(result, indent=2) + "\n"
        if invocation.is_json
        else text.text(result, colour=log.is_colourful(sys.stdout))
    )
    return 0


def revert(invocation: Invocation) -> int:
    """Uninstall: restore the node as it was before the first run. Raises ToolkitError."""
    from toolkit.cli import output  # noqa: PLC0415
    from toolkit.reconcile import describe, uninstall  # noqa: PLC0415

    context = invocation.context_or_fallback()
    stop = Cancellation()
    stop.listen()
    with lock.held(invocation.lock):
        done = uninstall.revert(context.settings, context.adapter, stop)
    sys.stdout.write(
        output.removal_json(done) if invocation.is_json else describe.removal_text(done)
    )
    return 128 + stop.signal if stop.signal is not None else 0


COMMANDS: Final[Mapping[str, Callable[[Invocation], int]]] = MappingProxyType(
    {
        "run": run,
        "plan": plan,
        "revert": revert,
        "status": status,
        "detect": detect,
        "diagnose": diagnose,
        "sync": keep,
    }
)


def _run(invocation: Invocation) -> int:
    stop = Cancellation()
    no_daemon = invocation.settings.no_daemon
    # SIGHUP makes the agent resolve its settings again, so it does not stop the first sync.
    stop.listen(keep=() if no_daemon else (signal.SIGHUP,))
    with _reporting_failures(invocation.settings):
        context = invocation.context(stop)
    if invocation.is_json and not no_daemon:
        raise UsageProblem(
            ["-o json requires --no-daemon"],
            hint="add --no-daemon, or write the agent's log as JSON with --log-format=json",
        )
    with lock.held(invocation.lock) as fd, _reporting_failures(context.settings):
        if no_daemon:
            from toolkit.reconcile import readiness, transaction  # noqa: PLC0415  # not for a plan

            began = time.monotonic()
            applied = transaction.converge(context.settings, context.adapter, stop)
            _require_specification(applied)
            readiness.report(context.settings)
            if readiness.lacks_driver(context, applied):
                log.LOGGER.warning("not ready: %s", readiness_probe.NO_DRIVER)
            if invocation.is_json:
                from toolkit.cli import output  # noqa: PLC0415

                sys.stdout.write(output.run_json(applied, seconds=time.monotonic() - began))
            return 128 + stop.signal if stop.signal is not None else 0
        from toolkit.agent import daemon, sync  # noqa: PLC0415  # only this command needs them

        first = sync.first(context)
        return daemon.stay(fd, first, invocation.arguments, invocation.log_options, stop)


@contextmanager
def _reporting_failures(settings: Settings) -> Iterator[None]:
    """Report to the API server that the node is not set up: no agent runs that would do so."""
    try:
        yield
    except (Interrupted, Locked):
        raise
    except ToolkitError as error:
        from toolkit.kube import report as kube_report  # noqa: PLC0415  # rarely needed

        if kube_report.is_wanted(settings):
            from toolkit.agent import report  # noqa: PLC0415  # rarely needed
            from toolkit.reconcile import readiness  # noqa: PLC0415

            is_exhausted = isinstance(error, StepError) and bool(
                budget_of(settings).restart_refusal()
            )
            failure = report.failure(error.exit_code, error.message, is_exhausted=is_exhausted)
            readiness.report(settings, failure)
        raise


def _require_specification(applied: Plan) -> None:
    """Raise StepError if the CDI specification still waits for the driver: only the agent waits."""
    if waits_for := applied.specification.waits_for:
        raise StepError(
            f"the CDI specification was not made: {waits_for}; the runtime and its files are in"
            " sync",
            hint=(
                "run again once the driver is available; without --no-daemon the agent waits for it"
            ),
        )
