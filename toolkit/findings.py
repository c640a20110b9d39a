"""What is wrong, computed from everything that was seen: the most important first, each with the way out.

Pure: a section that could not be had holds nothing that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]
Finding = dict[str, str]


def findings(found: Found) -> list[Finding]:
    """Return what is wrong."""
    looks = (
        _references,
        _record,
        _sockets,
        _health,
        _wanted,
        _readiness,
        _files,
        _copies,
        _specifications,
        _driver,
    )
    return [finding for look in looks for finding in look(found)]


def _one(problem: str, way_out: str) -> Finding:
    return {"problem": problem, "way_out": way_out}


def _of(found: Found, *keys: str) -> Any:
    """Return what lies at a path of keys; an empty mapping where there is nothing."""
    here: Any = found
    for key in keys:
        here = here.get(key) if isinstance(here, Mapping) else None
    return {} if here is None else here


def _items(found: Found, *keys: str) -> list[Found]:
    here = _of(found, *keys)
    return [each for each in here if isinstance(each, Mapping)] if isinstance(here, list) else []


def _references(found: Found) -> Iterator[Finding]:
    """Yield what leads nowhere: this makes containers fail now, with the default handler all of them."""
    default = _of(found, "configuration", "effective", "default")
    configured = _of(found, "tool", "runtime")
    handlers = _items(found, "dangling", "handlers")
    is_default = [(h["runtime"], h["handler"]) == (configured, default) for h in handlers]
    for first in (True, False):
        for each, named in zip(handlers, is_default, strict=True):
            if named is first:
                what = "the default handler" if named else "the handler"
                yield _one(
                    f"{what} {each['handler']} of {each['runtime']} runs {each['program']},"
                    f" which {each['problem']}: its containers fail",
                    "install what it runs, or take the handler out of the configuration"
                    " (`nvidia-toolkit revert` does so with ours)",
                )
    for each in _items(found, "dangling", "hooks"):
        what = f"runs {each['program']}, which {each['problem']}" if each["program"] else each["problem"]
        yield _one(
            f"the OCI hook {each['file']} {what}: CRI-O and podman may fail to start any container",
            "remove the hook file, or install what it runs",
        )
    if target := _of(found, "dangling").get("link"):
        yield _one(
            f"the toolkit's link points to {target}, which does not exist",
            "run `nvidia-toolkit run` to install it again",
        )


def _record(found: Found) -> Iterator[Finding]:
    record, lock = _of(found, "state", "record"), _of(found, "state", "lock")
    if "unavailable" in record:
        yield _one(
            f"what was done before cannot be read: {record['unavailable']}",
            "run as root; a record that is damaged is to be kept, for help with it",
        )
    if (opened := record.get("open")) and not lock.get("held"):
        how = f" and failed: {opened['why']}" if opened["why"] else ""
        yield _one(
            f"a transaction ({opened['job']}) was begun and not finished{how}, and nobody works on it",
            "run `nvidia-toolkit run` or `nvidia-toolkit revert`: either finishes or undoes it first",
        )
    if record.get("owed_since") and not record.get("open"):
        yield _one(
            f"the runtime has not been seen to take up what was written at {record['owed_since']}",
            "run `nvidia-toolkit run`, or restart the runtime",
        )


def _sockets(found: Found) -> Iterator[Finding]:
    for runtime in _items(found, "runtimes"):
        for each in _items(runtime, "sockets"):
            if not runtime.get("configured") and not each["owner"]:
                continue
            if each["problem"]:
                yield _one(
                    f"{runtime['name']}: {each['problem']}",
                    "name the runtime's own socket with --socket, and give the pod `hostPID: true`",
                )
        if runtime.get("configured") and not runtime["sockets"]:
            yield _one(
                f"{runtime['name']} is the configured runtime, but none of its sockets exists",
                "start it, mount its socket, or name the right ones with --runtime and --socket",
            )


def _health(found: Found) -> Iterator[Finding]:
    running = _of(found, "configuration", "running")
    is_asked = any(r.get("configured") and r["sockets"] for r in _items(found, "runtimes"))
    if is_asked and running.get("well") is False:
        yield _one(
            f"the runtime is not well: {'; '.join(running['ailments'])}",
            "look at the runtime's own log; until it is well only --repair changes it",
        )
    refusal = _of(found, "state", "restarts").get("refusal")
    if refusal:
        yield _one(str(refusal), "find out what restarts it, or raise --restart-budget")


def _wanted(found: Found) -> Iterator[Finding]:
    plan = _of(found, "configuration", "plan")
    problem = plan.get("problem") or plan.get("unavailable") or _of(found, "configuration").get("unavailable")
    if problem:
        yield _one(
            f"what is wanted cannot be planned: {problem}",
            str(plan.get("hint") or "repair what it names; nothing is changed until then"),
        )
    elif plan.get("in_sync") is False:
        changed = [each["path"] for each in plan["changes"]]
        parts = [f"{len(changed)} file(s) would change ({', '.join(changed)})"] if changed else []
        parts += ["the toolkit would be installed"] if plan.get("toolkit") else []
        yield _one(
            f"the node is not as wanted: {'; '.join(parts) or plan['reload']}",
            "run `nvidia-toolkit run`; `nvidia-toolkit plan` shows the change first",
        )


def _readiness(found: Found) -> Iterator[Finding]:
    ready = _of(found, "state", "readiness")
    plan = _of(found, "configuration", "plan")
    if ready.get("ready") is False and plan.get("in_sync"):
        yield _one(
            f"the node does not count as ready: {ready['why']}",
            "run `nvidia-toolkit run`, which writes the record once the runtime itself is as wanted",
        )


def _files(found: Found) -> Iterator[Finding]:
    for each in _items(found, "configuration", "files"):
        if each.get("as_written") is False:
            yield _one(
                f"{each['path']} was changed by somebody since it was written",
                "find out who manages it: two masters undo each other's work",
            )
        if each.get("mounted_by_itself"):
            yield _one(
                f"{each['path']} is mounted as a file of its own and cannot be replaced in one step",
                "mount the directory that it lies in",
            )
        if each.get("problem"):
            yield _one(f"{each['path']} cannot be looked at: {each['problem']}", "run as root")


def _copies(found: Found) -> Iterator[Finding]:
    others = [
        each["path"]
        for each in _items(found, "copies", "files")
        if not each["ours"] and each["path"].rpartition("/")[2].startswith("nvidia-container-runtime")
    ]
    if others and any(each["ours"] for each in _items(found, "copies", "files")):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield _one(
            f"the node has a second toolkit: {', '.join(others[:3])}{more}",
            "remove that package, or make sure that nothing looks for the toolkit on PATH",
        )


def _specifications(found: Found) -> Iterator[Finding]:
    for each in _items(found, "cdi", "specifications"):
        if gone := each.get("missing_hooks"):
            yield _one(
                f"the CDI specification {each['path']} names {', '.join(gone)}, which is not on the node:"
                " no container with its devices starts",
                "make it again with the toolkit that is installed, or remove it",
            )
        if each.get("is_old"):
            yield _one(
                f"the CDI specification {each['path']} is of driver {', '.join(each['drivers'])}, but"
                f" {_of(found, 'cdi').get('driver')} is loaded",
                "have it made again by whoever made it",
            )


def _driver(found: Found) -> Iterator[Finding]:
    driver = _of(found, "driver")
    links = driver.get("missing_links")
    if links:
        yield _one(
            f"{', '.join(links)} missing: running containers lose their GPU at the next"
            " `systemctl daemon-reload`",
            "make the links with `nvidia-ctk system create-dev-char-symlinks --create-all`",
        )
    if driver.get("modules") == [] and driver.get("version") is None:
        yield _one(
            "the driver is not loaded: the handlers pass everything on to the low-level runtime",
            "install and load the NVIDIA driver, where the node has a GPU",
        )
    root = _of(driver, "root")
    if driver.get("version") and root.get("path") and not root.get("libnvidia_ml"):
        yield _one(
            f"the driver is loaded, but its root {root['path']} has no libnvidia-ml.so.1",
            "name the place where the driver is installed with --driver-root (`/` for one of the node's own)",
        )
