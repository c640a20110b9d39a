"""Collect the report of `diagnose`: everything that a maintainer needs for a bug report.

Nothing on the node is changed, and the report never fails as a whole: a section that cannot be
collected contains the reason instead. Secrets are redacted in the complete report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass
from runtimes.errors import ConfigError
from runtimes.model import Observation
from toolkit import redact
from toolkit.cdi import driver
from toolkit.diagnose import cdi_specs, copies, dangling, sections
from toolkit.diagnose.findings import findings
from toolkit.discovery import endpoints
from toolkit.errors import ToolkitError
from toolkit.log import LOGGER
from toolkit.node import host as hosts
from toolkit.node import system
from toolkit.node.host import Host
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime import locate, observe
from toolkit.runtime.locate import Target
from toolkit.settings.layout import InstallDir
from toolkit.state import journal
from toolkit.state.record import Record

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """Inputs that several sections share; one that is None has its reason in `problems`."""

    host: Host
    target: Target | None
    record: Record | None
    plan: Plan | None
    observation: Observation | None
    problems: Mapping[str, dict[str, Any]]


def collect(context: Context) -> dict[str, Any]:
    """Return the report as JSON values; docs/output.md describes the format."""
    snapshot = _snapshot(context)
    settings, host = context.settings, snapshot.host
    runtimes = [
        _section(_runtime, context, host, adapter) for adapter in registry.ADAPTERS.values()
    ]
    name = None if context.unselected is not None else str(context.adapter.name)
    install_dir = (
        snapshot.target.install_dir if snapshot.target else Path(settings.toolkit_install_dir)
    )
    report = {
        "format": FORMAT,
        "tool": {"runtime": name, **_section(sections.program, settings)},
        "node": _section(system.node, host),
        "runtimes": runtimes,
        "configuration": _section(_configuration, context, snapshot),
        "state": _state(context, snapshot, install_dir),
        "copies": _section(_copies, snapshot, install_dir),
        "dangling": _section(_dangling, context, snapshot, runtimes, install_dir),
        "driver": _section(driver.driver, settings, host),
        "cdi": _section(cdi_specs.specifications, settings, host),
    }
    masked: dict[str, Any] = redact.value(report)
    # Findings quote the report, so they are derived from the redacted one.
    return {"findings": _findings(masked), **masked}


# --- sections -----------------------------------------------------------------------------------


def _section(section: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a section's function, or an object that says why it failed."""
    try:
        return section(*arguments)
    except ToolkitError as error:
        return {"unavailable": error.message, **({"hint": error.hint} if error.hint else {})}
    except (ConfigError, OSError) as error:
        return {"unavailable": str(error)}
    except Exception as error:  # noqa: BLE001  # a bug in one section must not affect the others
        LOGGER.debug("a section of the diagnosis failed", exc_info=True)
        return {"unavailable": f"this is a bug in nvidia-toolkit: {error!r}"}


def _findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    result = _section(findings, report)
    if isinstance(result, list):
        return result
    return [{"problem": str(result["unavailable"]), "hint": "please report this"}]


def _snapshot(context: Context) -> _Snapshot:
    """Collect the inputs that several sections share, each separately, because any may fail."""
    problems: dict[str, dict[str, Any]] = {}

    def attempt(name: str, section: Callable[..., Any], *arguments: Any) -> Any:
        result = _section(section, *arguments)
        if isinstance(result, dict):
            problems[name] = result
            return None
        return result

    target: Target | None = attempt("target", locate.target, context.settings, context.adapter)
    host = target.host if target else Host(root=Path("/"))
    record: Record | None = attempt("record", journal.load, target.install_dir) if target else None
    if context.unselected is not None:
        why = {"unavailable": context.unselected.problem, "hint": context.unselected.hint}
        problems |= dict.fromkeys(("plan", "observation"), why)
    plan: Plan | None = None if "plan" in problems else attempt("plan", make_plan, context)
    if "observation" in problems:
        observation: Observation | None = None
    elif plan is not None:
        observation = plan.observation
    else:
        observation = (
            attempt("observation", observe.observe, target, context.adapter, ()) if target else None
        )
    return _Snapshot(
        host=host,
        target=target,
        record=record,
        plan=plan,
        observation=observation,
        problems=problems,
    )


def _runtime(context: Context, host: Host, adapter: Adapter) -> dict[str, Any]:
    found = endpoints.runtime(context.settings, host, adapter)
    return {**found, "configured": found["configured"] and context.unselected is None}


def _configuration(context: Context, snapshot: _Snapshot) -> dict[str, Any]:
    target, plan = snapshot.target, snapshot.plan
    if target is None:
        return snapshot.problems["target"]
    if context.unselected is not None:
        return snapshot.problems["plan"]
    if context.settings.no_runtime_config:
        option = context.settings.origins["no_runtime_config"]
        return {"unavailable": f"the runtime's configuration is not managed ({option})"}
    record = snapshot.record or Record()
    names = sections.paths(
        target, record, list(snapshot.observation.files) if snapshot.observation else []
    )
    failed = snapshot.problems.get("plan", {})
    return {
        "config": target.desired.config,
        "drop_in": target.desired.drop_in,
        "socket": str(target.socket),
        "silence": target.no_process,
        "validator": target.binary,
        "files": _section(sections.listed, target, record, names),
        "effective": _section(_effective, context, snapshot),
        "plan": (
            _section(sections.plan, context, plan)
            if plan is not None
            else {"problem": failed.get("unavailable"), "hint": failed.get("hint", "")}
        ),
        "running": _section(sections.running, context, target),
        "supervisor": _section(sections.supervisor, context, target),
    }


def _effective(context: Context, snapshot: _Snapshot) -> dict[str, Any]:
    if snapshot.target is None or snapshot.observation is None:
        return snapshot.problems.get(
            "observation", {"unavailable": "the configuration was not inspected"}
        )
    return sections.effective(context, snapshot.target, snapshot.observation)


def _state(context: Context, snapshot: _Snapshot, install_dir: Path) -> dict[str, Any]:
    record = snapshot.record
    return {
        "record": (
            snapshot.problems.get("record", {"unavailable": "the node cannot be inspected"})
            if record is None
            else _section(sections.state, install_dir, record)
        ),
        "readiness": _section(sections.ready, context, snapshot.plan),
        "restarts": _section(sections.restarts, context),
        "lock": _section(sections.holder, Path(context.settings.pid_file)),
    }


def _copies(snapshot: _Snapshot, install_dir: Path) -> dict[str, Any]:
    is_installed = snapshot.record is not None and snapshot.record.toolkit_digest is not None
    link = InstallDir(install_dir).toolkit
    return {
        "installed": str(link.readlink()) if link.is_symlink() else None,
        "version": copies.own_version(snapshot.host, install_dir) if is_installed else None,
        "files": copies.copies(snapshot.host, install_dir, is_installed=is_installed),
    }


def _dangling(
    context: Context, snapshot: _Snapshot, runtimes: list[dict[str, Any]], install_dir: Path
) -> dict[str, Any]:
    handlers: list[dict[str, Any]] = []
    unavailable: list[str] = []
    for adapter, runtime in zip(registry.ADAPTERS.values(), runtimes, strict=True):
        result = _section(_handlers, context, snapshot, adapter, runtime)
        if isinstance(result, list):
            handlers += result
        else:
            unavailable.append(f"{adapter.name}: {result['unavailable']}")
    also = [Path(context.settings.hooks_dir)] if context.settings.is_given("hooks_dir") else []
    return {
        "handlers": handlers,
        "hooks": _section(dangling.hooks, snapshot.host, also),
        "link": dangling.link(install_dir),
        "unseen": unavailable,
    }


def _handlers(
    context: Context, snapshot: _Snapshot, adapter: Adapter, runtime: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the dangling handlers of a runtime, whether or not it is the configured one."""
    target, observation = snapshot.target, snapshot.observation
    if "unavailable" in runtime:
        raise ToolkitError(runtime["unavailable"])
    if not runtime["configured"]:
        target = endpoints.find_target(context.settings, snapshot.host, adapter, runtime)
        observation = observe.observe(target, adapter, ()) if target is not None else None
        if target is None:
            return []
    if target is None or observation is None:
        why = snapshot.problems.get("observation") or snapshot.problems.get("target") or {}
        raise ToolkitError(why.get("unavailable", "its configuration was not inspected"))
    programs = adapter.programs(target.desired, observation)
    owners = [each["owner"] for each in runtime["sockets"] if each["is_runtime"]]
    # The runtime starts the programs, so they have to be in its own mount namespace.
    seen = hosts.of_process(owners[0]["pid"]) if owners else None
    host = target.host if seen is None or seen.is_here else seen
    return dangling.handlers(
        host, str(adapter.name), programs, owners[0]["search_path"] if owners else None
    )
