"""Derive the list of problems from the report, the most important first, each with a hint.

Only the report is read, never the node. A section that could not be collected yields no problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]
Finding = dict[str, str]
_DRIVERS_OF_NODE = ("/sys/module/nvgpu", "/dev/dxg")
"""Signs of a driver that is part of the node (Tegra, WSL2): no container installs it."""


def findings(result: Found) -> list[Finding]:
    """Return the problems in a report, the most important first."""
    checks = (
        _selection,
        _references,
        _record,
        _sockets,
        _health,
        _supervisor,
        _sync,
        _readiness,
        _files,
        _copies,
        _specifications,
        _driver,
    )
    return [finding for check in checks for finding in check(result)]


def _finding(problem: str, hint: str) -> Finding:
    return {"problem": problem, "hint": hint}


def _get(result: Found, *keys: str) -> Any:
    """Return the value at a path of keys, or an empty mapping if there is none."""
    item: Any = result
    for key in keys:
        item = item.get(key) if isinstance(item, Mapping) else None
    return {} if item is None else item


def _items(result: Found, *keys: str) -> list[Found]:
    item = _get(result, *keys)
    return [each for each in item if isinstance(each, Mapping)] if isinstance(item, list) else []


def _selection(result: Found) -> Iterator[Finding]:
    """Yield why no runtime could be selected: whatever follows is about the rest of the node."""
    configuration = _get(result, "configuration")
    if _is_unselected(result):
        yield _finding(str(configuration["unavailable"]), str(configuration.get("hint", "")))


def _is_unselected(result: Found) -> bool:
    tool = _get(result, "tool")
    return "runtime" in tool and tool["runtime"] is None


def _references(result: Found) -> Iterator[Finding]:
    """Yield dangling references, which make containers fail; the default handler's comes first."""
    default = _get(result, "configuration", "effective", "default")
    configured = _get(result, "tool", "runtime")
    handlers = _items(result, "dangling", "handlers")
    is_default = [(h["runtime"], h["handler"]) == (configured, default) for h in handlers]
    for first in (True, False):
        for each, is_default_handler in zip(handlers, is_default, strict=True):
            if is_default_handler is first:
                subject = "the default handler" if is_default_handler else "the handler"
                yield _finding(
                    f"{subject} {each['handler']} of {each['runtime']} runs {each['program']},"
                    f" which {each['problem']}: its containers fail to start",
                    "install that program, or remove the handler from the configuration"
                    " (`nvidia-toolkit revert` removes our handlers)",
                )
    for each in _items(result, "dangling", "hooks"):
        subject = (
            f"runs {each['program']}, which {each['problem']}"
            if each["program"]
            else each["problem"]
        )
        yield _finding(
            f"the OCI hook {each['file']} {subject}: CRI-O and podman may fail to start any"
            " container",
            "remove the hook file, or install the program that it runs",
        )
    if target := _get(result, "dangling").get("link"):
        yield _finding(
            f"the toolkit's link points to {target}, which does not exist",
            "run `nvidia-toolkit run` to reinstall the toolkit",
        )


def _record(result: Found) -> Iterator[Finding]:
    record, lock = _get(result, "state", "record"), _get(result, "state", "lock")
    if "unavailable" in record:
        yield _finding(
            f"the state file cannot be read: {record['unavailable']}",
            "run as root; if the file is damaged, keep it for the bug report",
        )
    if (opened := record.get("open")) and not lock.get("held"):
        how = f" and failed: {opened['failure']}" if opened["failure"] else ""
        yield _finding(
            f"a transaction ({opened['operation']}) is incomplete{how}, and no process is working"
            " on it",
            "run `nvidia-toolkit run` or `nvidia-toolkit revert`, which complete it or roll it back"
            " first",
        )
    if record.get("pending_reload") and not record.get("open"):
        yield _finding(
            "the runtime is not known to have loaded the change written at"
            f" {record['pending_reload']}",
            "run `nvidia-toolkit run`, or restart the runtime",
        )


def _sockets(result: Found) -> Iterator[Finding]:
    for runtime in _items(result, "runtimes"):
        for each in _items(runtime, "sockets"):
            if not runtime.get("configured") and not each["owner"]:
                continue
            if each["problem"]:
                yield _finding(
                    f"{runtime['name']}: {each['problem']}",
                    "set --socket to the runtime's socket, and run the pod with `hostPID: true`",
                )
        if runtime.get("configured") and not runtime["sockets"]:
            yield _finding(
                f"{runtime['name']} is the configured runtime, but none of its sockets exists",
                "start it, mount its socket, or correct --runtime and --socket",
            )


def _health(result: Found) -> Iterator[Finding]:
    running = _get(result, "configuration", "running")
    is_asked = any(r.get("configured") and r["sockets"] for r in _items(result, "runtimes"))
    if is_asked and running.get("healthy") is False:
        yield _finding(
            f"the runtime is unhealthy: {'; '.join(running['problems'])}",
            "see the runtime's log; until it is healthy, only --ignore-unhealthy allows a change",
        )
    refusal = _get(result, "state", "restarts").get("refusal")
    if refusal:
        yield _finding(str(refusal), "find out what causes the restarts, or raise --restart-budget")


def _supervisor(result: Found) -> Iterator[Finding]:
    """Yield why the runtime may stay down, and what goes down with it."""
    found, name = _get(result, "configuration", "supervisor"), _get(result, "tool").get("runtime")
    if found.get("doubt"):
        yield _finding(
            f"nothing is known to start {name} again if it ends: {found['doubt']}",
            "run it as a systemd service with `Restart=always`, or under another supervisor;"
            " without one, use --restart-mode none and restart it yourself",
        )
    for unit, state in found.get("stopped_dependents", {}).items():
        yield _finding(
            f"{unit} depends on {found['unit']} and is {state}",
            f"start it with `systemctl start {unit}`; a restart of {found['unit']} may have"
            " stopped it",
        )
    if units := found.get("dependents"):
        yield _finding(
            f"a restart of {found['unit']} also restarts or stops {', '.join(units)}",
            f"nvidia-toolkit restarts {found['unit']} alone, other tools and --restart-mode signal"
            " do not: use Wants= instead of Requires=, BindsTo=, PartOf= or Requisite= in those"
            " units",
        )


def _sync(result: Found) -> Iterator[Finding]:
    plan = _get(result, "configuration", "plan")
    if _is_unselected(result):
        return
    problem = (
        plan.get("problem")
        or plan.get("unavailable")
        or _get(result, "configuration").get("unavailable")
    )
    if problem:
        yield _finding(
            f"cannot plan the change: {problem}",
            str(plan.get("hint") or "fix the reported problem; nothing is changed until then"),
        )
    elif blocked := _items(result, "configuration", "plan", "blocked"):
        state = f"the node is {'in sync, but' if plan.get('in_sync') else 'not in sync, and'}"
        for each in blocked:
            yield _finding(
                f"{state} `run` would refuse: {each['problem']}",
                each["hint"] or "`nvidia-toolkit plan` shows the whole plan",
            )
    elif plan.get("in_sync") is False:
        changed = [each["path"] for each in plan["changes"]]
        parts = [f"{len(changed)} file(s) would change ({', '.join(changed)})"] if changed else []
        parts += ["the toolkit would be installed"] if plan.get("toolkit") else []
        yield _finding(
            f"the node is not in sync: {'; '.join(parts) or plan['reload']}",
            "run `nvidia-toolkit run`; `nvidia-toolkit plan` shows the change beforehand",
        )


def _readiness(result: Found) -> Iterator[Finding]:
    ready = _get(result, "state", "readiness")
    plan = _get(result, "configuration", "plan")
    if ready.get("ready") is False and plan.get("in_sync"):
        yield _finding(
            f"the node is not ready: {ready['why']}",
            "run `nvidia-toolkit run`, which marks the node ready once the runtime uses the"
            " configuration",
        )


def _files(result: Found) -> Iterator[Finding]:
    for each in _items(result, "configuration", "files"):
        if each.get("as_written") is False:
            yield _finding(
                f"{each['path']} was modified after it was written",
                "find out what else manages the file, because both would overwrite each other's"
                " changes",
            )
        if each.get("mounted_by_itself"):
            yield _finding(
                f"{each['path']} is a mount point and cannot be replaced atomically",
                "mount its directory instead of the file",
            )
        if each.get("problem"):
            yield _finding(f"{each['path']} cannot be read: {each['problem']}", "run as root")


def _copies(result: Found) -> Iterator[Finding]:
    others = [
        each["path"]
        for each in _items(result, "copies", "files")
        if not each["owned"]
        and each["path"].rpartition("/")[2].startswith("nvidia-container-runtime")
    ]
    if others and any(each["owned"] for each in _items(result, "copies", "files")):
        rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield _finding(
            f"the node has a second toolkit: {', '.join(others[:3])}{rest}",
            "remove that package, or make sure that no program searches PATH for the toolkit",
        )


def _specifications(result: Found) -> Iterator[Finding]:
    for each in _items(result, "cdi", "specifications"):
        if missing := each.get("missing_hooks"):
            yield _finding(
                f"the CDI specification {each['path']} uses the hook {', '.join(missing)}, which is"
                " not on the node: containers with its devices fail to start",
                "generate it again with the installed toolkit, or remove it",
            )
        if each.get("is_old"):
            yield _finding(
                f"the CDI specification {each['path']} is for driver {', '.join(each['drivers'])},"
                f" but {_get(result, 'cdi').get('driver')} is loaded",
                "generate it again with the tool that created it",
            )


def _driver(result: Found) -> Iterator[Finding]:
    driver = _get(result, "driver")
    links = driver.get("missing_links")
    if links:
        yield _finding(
            f"{', '.join(links)} missing: running containers lose their GPU at the next"
            " `systemctl daemon-reload`",
            "create the links with `nvidia-ctk system create-dev-char-symlinks --create-all`",
        )
    if (
        driver.get("modules") == []
        and driver.get("version") is None
        and driver.get("loaded") is None
    ):
        yield _finding(
            "the driver is not loaded: containers get no GPU",
            "install and load the NVIDIA driver if the node has a GPU",
        )
    root = _get(driver, "root")
    if driver.get("loaded") in _DRIVERS_OF_NODE and root.get("path") and not root.get("exists"):
        yield _finding(
            f"the driver's root {root['path']} does not exist, and the driver of this node"
            f" ({driver['loaded']}) is part of it",
            "set --driver-root=/ (NVIDIA_DRIVER_ROOT=/)",
        )
    if driver.get("version") and root.get("path") and not root.get("libnvidia_ml"):
        yield _finding(
            f"the driver is loaded, but its root {root['path']} has no libnvidia-ml.so.1",
            "set --driver-root to the directory where the driver is installed (`/` if on the node"
            " itself)",
        )
