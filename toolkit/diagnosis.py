"""Everything that a maintainer would ask for in a bug report, in one answer: nothing is changed for it.

It never fails: what cannot be had says why in its place. Whatever is secret is
masked in the end, in all of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import Observation
from toolkit import catalogue, copies, dangling, detect, driver, evidence, journal, machine, masking, sockets
from toolkit.detect import Scene
from toolkit.errors import ToolkitError
from toolkit.findings import findings
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.memory import Record
from toolkit.view import Task, View, view

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenery:
    """What all sections look at; None where it cannot be had, and `problems` then says why."""

    host: Host
    place: Scene | None
    record: Record | None
    found: View | None
    seen: Observation | None
    problems: Mapping[str, dict[str, Any]]


def collect(task: Task) -> dict[str, Any]:
    """Return the diagnosis as plain values; docs/output.md describes its shape."""
    scenery = _look(task)
    settings, host = task.settings, scenery.host
    runtimes = [_section(_runtime, task, host, adapter) for adapter in registry.ADAPTERS.values()]
    install_dir = scenery.place.install_dir if scenery.place else Path(settings.text("toolkit_install_dir"))
    seen = {
        "format": FORMAT,
        "tool": {"runtime": str(task.adapter.name), **_section(evidence.tool, settings)},
        "node": _section(machine.node, host),
        "runtimes": runtimes,
        "configuration": _section(_configuration, task, scenery),
        "state": _state(task, scenery, install_dir),
        "copies": _section(_copies, scenery, install_dir),
        "dangling": _section(_dangling, task, scenery, runtimes, install_dir),
        "driver": _section(driver.driver, settings, host),
        "cdi": _section(catalogue.specifications, settings, host),
    }
    masked: dict[str, Any] = masking.value(seen)
    # Findings quote what was seen, so they are made of what is masked already.
    return {"findings": _findings(masked), **masked}


def text(found: Mapping[str, Any]) -> str:
    """Return a diagnosis for people: what is wrong first, then everything that was seen."""
    lines = ["findings\n"]
    for number, each in enumerate(found["findings"], 1):
        lines += [f"  {number}. {each['problem']}\n", f"     -> {each['way_out']}\n"]
    if not found["findings"]:
        lines.append("  nothing is wrong, as far as could be seen\n")
    for name, section in found.items():
        if name not in ("findings", "format"):
            lines += ["\n", *_shown(name, section, "")]
    return "".join("".join(_printable(line)) for line in lines)


# --- how sections are made ----------------------------------------------------------------------


def _section(look: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a look finds, or why it finds nothing."""
    try:
        return look(*arguments)
    except ToolkitError as error:
        return {"unavailable": error.message, **({"hint": error.hint} if error.hint else {})}
    except (NotUnderstood, OSError) as error:
        return {"unavailable": str(error)}
    except Exception as error:  # noqa: BLE001  # a bug in one section may not cost the others
        LOGGER.debug("a section of the diagnosis failed", exc_info=True)
        return {"unavailable": f"this is a bug in nvidia-toolkit: {error!r}"}


def _findings(seen: Mapping[str, Any]) -> list[dict[str, str]]:
    made = _section(findings, seen)
    if isinstance(made, list):
        return made
    return [{"problem": str(made["unavailable"]), "way_out": "please report this"}]


def _look(task: Task) -> _Scenery:
    """Look at what several sections need, each for itself: the plan is most likely what fails."""
    problems: dict[str, dict[str, Any]] = {}

    def had(name: str, look: Callable[..., Any], *arguments: Any) -> Any:
        got = _section(look, *arguments)
        if isinstance(got, dict):
            problems[name] = got
            return None
        return got

    place: Scene | None = had("place", detect.scene, task.settings, task.adapter)
    host = place.host if place else Host(root=Path("/"))
    record: Record | None = had("record", journal.load, place.install_dir) if place else None
    found: View | None = had("plan", view, task)
    if found is not None:
        seen: Observation | None = found.seen
    else:
        seen = had("seen", detect.observe, place, task.adapter, ()) if place else None
    return _Scenery(host=host, place=place, record=record, found=found, seen=seen, problems=problems)


def _runtime(task: Task, host: Host, adapter: Adapter) -> dict[str, Any]:
    return sockets.runtime(task.settings, host, adapter)


def _configuration(task: Task, scenery: _Scenery) -> dict[str, Any]:
    place, found = scenery.place, scenery.found
    if place is None:
        return scenery.problems["place"]
    if task.settings.flag("no_runtime_config"):
        return {"unavailable": "the runtime is not configured, as asked"}
    record = scenery.record or Record()
    names = evidence.paths(place, record, list(scenery.seen.files) if scenery.seen else [])
    failed = scenery.problems.get("plan", {})
    return {
        "config": place.desired.config,
        "drop_in": place.desired.drop_in,
        "socket": str(place.socket),
        "silence": place.silence,
        "judge": place.binary,
        "files": _section(evidence.listed, place, record, names),
        "effective": _section(_effective, task, scenery),
        "plan": _section(evidence.plan, found)
        if found is not None
        else {"problem": failed.get("unavailable"), "hint": failed.get("hint", "")},
        "running": _section(evidence.running, task, place),
    }


def _effective(task: Task, scenery: _Scenery) -> dict[str, Any]:
    if scenery.place is None or scenery.seen is None:
        return scenery.problems.get("seen", {"unavailable": "the configuration was not looked at"})
    return evidence.effective(task, scenery.place, scenery.seen)


def _state(task: Task, scenery: _Scenery, install_dir: Path) -> dict[str, Any]:
    record = scenery.record
    return {
        "record": scenery.problems.get("record", {"unavailable": "the node cannot be looked at"})
        if record is None
        else _section(evidence.state, install_dir, record),
        "readiness": _section(evidence.ready, task, scenery.found),
        "restarts": _section(evidence.restarts, task),
        "lock": _section(evidence.holder, Path(task.settings.text("pid_file"))),
    }


def _copies(scenery: _Scenery, install_dir: Path) -> dict[str, Any]:
    is_installed = scenery.record is not None and scenery.record.artifacts is not None
    link = install_dir / "toolkit"
    return {
        "installed": str(link.readlink()) if link.is_symlink() else None,
        "version": copies.own_version(scenery.host, install_dir) if is_installed else None,
        "files": copies.copies(scenery.host, install_dir, is_installed=is_installed),
    }


def _dangling(
    task: Task, scenery: _Scenery, runtimes: list[dict[str, Any]], install_dir: Path
) -> dict[str, Any]:
    handlers: list[dict[str, Any]] = []
    unseen: list[str] = []
    for adapter, runtime in zip(registry.ADAPTERS.values(), runtimes, strict=True):
        got = _section(_handlers, task, scenery, adapter, runtime)
        if isinstance(got, list):
            handlers += got
        else:
            unseen.append(f"{adapter.name}: {got['unavailable']}")
    also = [Path(task.settings.text("hooks_dir"))] if task.settings.is_given("hooks_dir") else []
    return {
        "handlers": handlers,
        "hooks": _section(dangling.hooks, scenery.host, also),
        "link": dangling.link(install_dir),
        "unseen": unseen,
    }


def _handlers(
    task: Task, scenery: _Scenery, adapter: Adapter, runtime: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the dangling handlers of a runtime, the configured one or another that is on the node."""
    place, seen = scenery.place, scenery.seen
    if "unavailable" in runtime:
        raise ToolkitError(runtime["unavailable"])
    if not runtime["configured"]:
        place = sockets.scene(task.settings, scenery.host, adapter, runtime)
        seen = detect.observe(place, adapter, ()) if place is not None else None
        if place is None:
            return []
    if place is None or seen is None:
        why = scenery.problems.get("seen") or scenery.problems.get("place") or {}
        raise ToolkitError(why.get("unavailable", "its configuration was not looked at"))
    programs = adapter.programs(place.desired, seen)
    owners = [each["owner"] for each in runtime["sockets"] if each["is_runtime"]]
    return dangling.handlers(
        place.host, str(adapter.name), programs, owners[0]["search_path"] if owners else None
    )


# --- how it is shown ----------------------------------------------------------------------------


def _shown(name: str, item: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a value below its name."""
    if isinstance(item, Mapping) and item:
        yield f"{indent}{name}\n"
        for key, inner in item.items():
            yield from _shown(str(key), inner, indent + "  ")
    elif isinstance(item, list) and name == "argv":
        yield f"{indent}{name}: {shlex.join(item)}\n"
    elif isinstance(item, list) and any(not isinstance(each, str) or " " in each for each in item):
        yield f"{indent}{name}\n"
        for each in item:
            yield from _entry(each, indent + "  ")
    elif isinstance(item, str) and "\n" in item:
        yield f"{indent}{name}\n"
        yield from (f"{indent}  | {line}\n" for line in item.splitlines())
    else:
        yield f"{indent}{name}: {_word(item)}\n"


def _entry(item: Any, indent: str) -> Iterator[str]:
    if not isinstance(item, Mapping):
        yield f"{indent}- {_word(item)}\n"
        return
    sign = "- "
    for key, inner in item.items():
        first, *rest = _shown(str(key), inner, indent + "  ")
        yield f"{indent}{sign}{first.lstrip()}"
        yield from rest
        sign = "  "


def _word(item: Any) -> str:
    match item:
        case None | "" | [] | {}:
            return "-"
        case bool():
            return "yes" if item else "no"
        case list():
            return " ".join(map(str, item))
        case _:
            return str(item)


def _printable(line: str) -> Iterator[str]:
    """Yield the signs of a line: what a terminal would act on, or cannot show, is spelled out."""
    for sign in line:
        yield sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1]
