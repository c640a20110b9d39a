"""CRI-O's dialect without a crio: the order of its files, what ours inherit, the hook, the revert.

Where a binary is asked, a small model of CRI-O answers: it merges the files as CRI-O does and
prints, as `crio config` does, only what is not the built-in value, some after the last handler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final, cast

import pytest
import tomli
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.crio import ADAPTER as crio
from runtimes.crio import config_files as crio_files
from runtimes.crio import validate as crio_validate
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.model import (
    BinaryQuery,
    BinaryResult,
    ConfigPlan,
    Desired,
    Handler,
    Observation,
    Origin,
    Ownership,
    RuntimeName,
    directory_token,
    token,
)
from tests.support import nodes, pure_plan
from tests.unit.test_docker import record
from tests.unit.test_planner import deep

ADAPTER: Final[Adapter] = crio
CONFIG: Final = "/etc/crio/crio.conf"
DIRECTORY: Final = "/etc/crio/crio.conf.d"
DROP_IN: Final = f"{DIRECTORY}/99-nvidia.toml"
PACKAGE: Final = f"{DIRECTORY}/10-crio.conf"
HOOK: Final = "/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json"
HOOK_BINARY: Final = f"{pure_plan.TOOLKIT}/nvidia-container-runtime-hook"
CORPUS: Final = nodes.CHECKOUT.parent / "shared" / "corpus" / "crio"
CASES: Final = sorted(path.name for path in CORPUS.glob("*.conf")) or ["absent"]
NAMES: Final = frozenset(handler.name for handler in pure_plan.HANDLERS)
LIMITS: Final = settings(deadline=None, max_examples=40)
RENAMED: Final = (Handler(name="gpu", binary=pure_plan.HANDLERS[0].binary), *pure_plan.HANDLERS[1:])
_WISH: Final = Desired(
    runtime=RuntimeName.CRIO,
    config=CONFIG,
    drop_in=DROP_IN,
    directory=DIRECTORY,
    hook=HOOK,
    hook_binary=HOOK_BINARY,
    handlers=pure_plan.HANDLERS,
    default="nvidia",
)

Owned = tuple[Ownership, ...]
Content = dict[str, Any]


def desired(**changed: Any) -> Desired:
    return replace(_WISH, **changed)


IN_PLACE: Final = desired(drop_in="")


# --- a model of CRI-O -----------------------------------------------------------------------------

BUILT_IN: Final[Content] = {
    "root": "/var/lib/containers/storage",
    "runtime": {
        "default_runtime": "crun",
        "selinux": False,
        "timezone": "",
        "disable_hostport_mapping": False,
        "hostnetwork_disable_selinux": True,
        "runtimes": {
            "crun": {"runtime_path": "", "runtime_type": "oci", "runtime_root": "/run/crun"}
        },
    },
    "image": {"pause_image": "registry.example/pause:1"},
}
STRAYS: Final = ("disable_hostport_mapping", "hostnetwork_disable_selinux", "timezone")


def merged(files: list[bytes]) -> Content:
    """Merge files over the built-in values: a later handler replaces the earlier one whole."""
    result = BUILT_IN
    for data in files:
        content = tomli.loads(data.decode()).get("crio", {})
        handlers = content.get("runtime", {}).pop("runtimes", {})
        old = result["runtime"]["runtimes"]
        result = deep(result, content)
        result = result | {"runtime": result["runtime"] | {"runtimes": old | handlers}}
    return result


def printed(content: Content, *, below: Content | None) -> str:
    """Print as `crio config` does: built-in values as comments, stray keys after the handlers."""
    runtime = {k: v for k, v in content["runtime"].items() if k != "runtimes"}
    rest = {k: v for k, v in content.items() if k != "runtime"}
    if below is not None:
        runtime = {k: v for k, v in runtime.items() if v != below["runtime"].get(k)}
        rest = {k: v for k, v in rest.items() if v != below.get(k)}
    handlers = {name: dict(table) for name, table in content["runtime"]["runtimes"].items()}
    last = list(handlers.values())[-1]
    last |= {key: runtime.pop(key) for key in STRAYS if key in runtime}
    return tomlkit.dumps({"crio": rest | {"runtime": runtime | {"runtimes": handlers}}})


def model(question: BinaryQuery) -> BinaryResult:
    """Answer as CRI-O's binary does."""
    if question.argv == ("config", "--default"):
        return BinaryResult(code=0, out=printed(BUILT_IN, below=None), err="")
    assert question.argv == ("--config", token(0), "--config-dir", directory_token(0), "config")
    [root], [staged] = question.files, question.directories
    order = sorted(staged, key=lambda name: PurePosixPath(name).parts)
    try:
        content = merged([root, *(staged[name] for name in order)])
    except tomli.TOMLDecodeError as error:
        return BinaryResult(code=1, out="", err=f"level=fatal\n{error}\n")
    return BinaryResult(code=0, out=printed(content, below=BUILT_IN), err="")


WAYS: Final[dict[str, pure_plan.Ask | None]] = {"no binary": None, "binary": model}


# --- looking and planning -------------------------------------------------------------------------


def observe(
    wish: Desired, files: pure_plan.Files, owned: Owned = (), ask: pure_plan.Ask | None = None
) -> Observation:
    """Read what the adapter asks for, in turns, as `toolkit.runtime.target` does."""
    seen = Observation(binary="/usr/bin/crio" if ask else None, owned=owned)
    seen = replace(seen, files={each.path: files.get(each.path) for each in owned})
    for _ in range(9):
        look = ADAPTER.required_files(wish, seen)
        questions = () if look.files or look.globs or ask is None else ADAPTER.queries(wish, seen)
        if not (look.files or look.globs or questions):
            return seen
        globs = {}
        for pattern in look.globs:
            assert pattern == f"{DIRECTORY}/**"
            inside = [path for path in files if path.startswith(f"{DIRECTORY}/")]
            globs[pattern] = tuple(sorted(inside, key=lambda path: PurePosixPath(path).parts))
        seen = replace(
            seen,
            files={**seen.files, **{path: files.get(path) for path in look.files}},
            globs={**seen.globs, **globs},
            results={**seen.results, **{q.name: ask(q) for q in questions if ask}},
        )
    raise AssertionError("the adapter never has enough")


def plan(
    wish: Desired, files: pure_plan.Files, owned: Owned = (), ask: pure_plan.Ask | None = None
) -> ConfigPlan:
    """Return the plan, judged by the binary where there is one. Raises NotUnderstood."""
    seen = observe(wish, files, owned, ask)
    found = planner.plan(ADAPTER, wish, seen)
    question = None if found.is_noop else planner.candidate_query(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.check(ADAPTER, wish, seen, ask(question))
    return found


def removal(
    wish: Desired, files: pure_plan.Files, owned: Owned, ask: pure_plan.Ask | None = None
) -> ConfigPlan:
    seen = observe(wish, files, owned, ask)
    found = planner.removal(ADAPTER, seen)
    question = None if found.is_noop else planner.candidate_query(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.check_removal(ADAPTER, wish, seen, ask(question))
    return found


def installed(
    wish: Desired, files: pure_plan.Files, owned: Owned = (), ask: pure_plan.Ask | None = None
) -> tuple[dict[str, bytes], Owned]:
    """Return the files and the record after a run."""
    found = plan(wish, files, owned, ask)
    return pure_plan.after(files, found), record(ADAPTER, found, owned)


def runtime(data: bytes | None) -> Content:
    content: Content = tomli.loads((data or b"").decode()).get("crio", {}).get("runtime", {})
    return content


def handlers(data: bytes | None) -> Content:
    content: Content = runtime(data).get("runtimes", {})
    return content


def effective(files: pure_plan.Files) -> Content:
    """Return what the model runs with, whatever the program thinks of it."""
    inside = [path for path in files if path.startswith(f"{DIRECTORY}/")]
    order = sorted(inside, key=lambda path: PurePosixPath(path).parts)
    return merged([files.get(CONFIG, b""), *(files[path] for path in order)])


def toml(default: str = "", **tables: Content) -> bytes:
    """Return a file that says a default and handlers."""
    head = {"default_runtime": default} if default else {}
    return tomlkit.dumps({"crio": {"runtime": head | {"runtimes": tables}}}).encode()


# --- the order of the files -----------------------------------------------------------------------


def test_first_the_directory_is_looked_at_and_then_every_file_of_it() -> None:
    assert ADAPTER.required_files(desired(), Observation()).globs == (f"{DIRECTORY}/**",)
    paths = (f"{DIRECTORY}/.hidden", f"{DIRECTORY}/10-a.conf~", f"{DIRECTORY}/sub/x")
    seen = Observation(globs={f"{DIRECTORY}/**": paths})
    assert ADAPTER.required_files(desired(), seen).files == (CONFIG, *paths, DROP_IN, HOOK)
    assert ADAPTER.required_files(desired(drop_in="", hook=""), seen).files == (CONFIG, *paths)
    seen = replace(seen, files=dict.fromkeys((CONFIG, *paths, DROP_IN, HOOK)))
    assert ADAPTER.required_files(desired(), seen).files == ()


def test_files_are_read_in_byte_order_depth_first() -> None:
    # A directory's files come where its own name stands among its neighbours.
    names = [".hidden", "10/b", "10-a", "10-a.d/z", "10.conf", "9", "B", "a/y", "a/ü", "aa", "ü"]
    files = {f"{DIRECTORY}/{name}": b"" for name in reversed(names)}
    others = {f"{DIRECTORY}2/x": b"", "/etc/crio/x": b"", f"{DIRECTORY}/gone": None}
    found = crio_files.listed(desired(), {**files, **others})
    assert found == tuple(f"{DIRECTORY}/{name}" for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files, and the `runtime_root` that ours inherit; None where they inherit none."""

    files: pure_plan.Files
    root: str | None


def crun(root: str, **more: Any) -> Content:
    return {"runtime_path": "/usr/bin/crun", "runtime_root": root, **more}


SOURCES: Final = {
    "crio.conf alone": Source(files={CONFIG: toml("crun", crun=crun("/conf"))}, root="/conf"),
    "a drop-in over crio.conf": Source(
        files={CONFIG: toml("crun", crun=crun("/conf")), PACKAGE: toml(crun=crun("/10"))},
        root="/10",
    ),
    "a later drop-in": Source(
        files={
            f"{DIRECTORY}/20.conf": toml(crun=crun("/20")),
            PACKAGE: toml("crun", crun=crun("/10")),
        },
        root="/20",
    ),
    "byte order, not numbers": Source(
        files={
            f"{DIRECTORY}/9.conf": toml(crun=crun("/9")),
            PACKAGE: toml("crun", crun=crun("/10")),
        },
        root="/9",
    ),
    "a hidden file counts, and comes first": Source(
        files={
            f"{DIRECTORY}/.10.conf.swp": toml("runc", runc=crun("/hidden")),
            PACKAGE: toml(crun=crun("/10")),
        },
        root="/hidden",
    ),
    "a file below counts, where its directory stands": Source(
        files={
            f"{DIRECTORY}/05/z.conf": toml(crun=crun("/05")),
            PACKAGE: toml("crun", crun=crun("/10")),
            f"{DIRECTORY}/20/a.conf": toml(crun=crun("/20")),
            f"{DIRECTORY}/15": toml(crun=crun("/15")),
        },
        root="/20",
    ),
    "a later file replaces the handler whole": Source(
        files={
            PACKAGE: toml("crun", crun=crun("/10")),
            f"{DIRECTORY}/20.conf": toml(crun={"runtime_path": "/usr/bin/crun"}),
        },
        root=None,
    ),
    "the last default has the last word": Source(
        files={
            CONFIG: toml("runc", runc=crun("/runc"), crun=crun("/crun")),
            PACKAGE: toml("crun"),
        },
        root="/crun",
    ),
    "a default without a handler falls back": Source(
        files={CONFIG: toml("gone", runc=crun("/runc"))}, root="/runc"
    ),
    "no default said": Source(
        files={CONFIG: toml(runc=crun("/runc"), crun=crun("/crun"))}, root="/crun"
    ),
    "a virtual machine is no source": Source(
        files={CONFIG: toml("kata", kata=crun("/kata", runtime_type="vm"), runc=crun("/runc"))},
        root="/runc",
    ),
    "an empty type is the usual one": Source(
        files={CONFIG: toml("x", x=crun("/x", runtime_type=""), crun=crun("/crun"))}, root="/x"
    ),
    "the vendor's is no source": Source(
        files={CONFIG: toml("nvidia-old", **{"nvidia-old": crun("/old"), "runc": crun("/runc")})},
        root="/runc",
    ),
    "our own drop-in is no source": Source(
        files={
            CONFIG: toml("runc", runc=crun("/runc")),
            DROP_IN: toml("crun", crun=crun("/99"), runc=crun("/99")),
        },
        root="/runc",
    ),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_ours_inherit_from_the_default_handler_as_the_files_say(source: Source) -> None:
    after, _ = installed(desired(), source.files)
    ours = handlers(after[DROP_IN])
    for handler in pure_plan.HANDLERS:
        assert ours[handler.name].get("runtime_root") == source.root
        assert ours[handler.name]["runtime_path"] == handler.binary
        assert ours[handler.name]["runtime_type"] == "oci"


def test_everything_is_inherited_but_what_runs() -> None:
    table = {
        "runtime_path": "/usr/bin/crun",
        "runtime_type": "",
        "inherit_default_runtime": True,
        "runtime_root": "/run/crun",
        "monitor_path": "/usr/libexec/crio/conmon",
        "allowed_annotations": ["io.containers.trace-syscall", "io.kubernetes.cri-o.Devices"],
        "container_min_memory": "512KiB",
        "default_annotations": {"run.oci.systemd.subgroup": ""},
        "privileged_without_host_devices": False,
        "no_sync_log": True,
        "some_number": 0,
    }
    after, _ = installed(desired(), {CONFIG: toml("x", x=table)})
    own = ("runtime_path", "runtime_type", "inherit_default_runtime")
    kept = {key: item for key, item in table.items() if key not in own}
    assert handlers(after[DROP_IN]) == {
        handler.name: {"runtime_path": handler.binary, "runtime_type": "oci", **kept}
        for handler in pure_plan.HANDLERS
    }


@pytest.mark.parametrize("ask", [None, model], ids=["no binary", "binary"])
def test_a_handler_of_conmonrs_is_inherited_whole(ask: pure_plan.Ask | None) -> None:
    """With `oci` and no monitor, CRI-O searches for conmon, and without one it does not start."""
    table = {
        "runtime_path": "/usr/bin/crun",
        "runtime_type": "pod",
        "runtime_root": "/run/crun",
        "monitor_path": "/usr/bin/conmonrs",
        "monitor_cgroup": "system.slice",
        "monitor_env": ["PATH=/usr/sbin:/usr/bin"],
        "container_min_memory": "12MiB",
        "allowed_annotations": ["io.containers.trace-syscall", "io.kubernetes.cri-o.Devices"],
    }
    files = {PACKAGE: toml("crun", crun=table, kata={"runtime_path": "/k", "runtime_type": "vm"})}
    after, _ = installed(desired(), files, ask=ask)
    assert handlers(after[DROP_IN]) == {
        handler.name: {**table, "runtime_path": handler.binary} for handler in pure_plan.HANDLERS
    }
    found = plan(desired(), files)
    assert found.low_level == ("/usr/bin/crun",)
    assert found.origin == Origin(source="crun", settings=table, default="crun")
    files[PACKAGE] = files[PACKAGE].replace(
        b'default_runtime = "crun"', b'default_runtime = "kata"'
    )
    assert plan(desired(), files).origin == Origin(source="crun", settings=table, default="kata")
    assert plan(desired(default=None), files).origin.default == ""


@pytest.mark.parametrize(
    ("table", "is_sandbox"),
    [
        ({"runtime_path": "/usr/bin/containerd-shim-kata-v2", "runtime_type": "vm"}, True),
        ({"runtime_path": "/usr/bin/runsc"}, True),
        ({"runtime_path": "/usr/bin/crun"}, False),
    ],
)
def test_a_default_that_isolates_pods_is_not_replaced_without_a_word(
    table: dict[str, str], *, is_sandbox: bool
) -> None:
    files = {CONFIG: toml("x", x=table, crun={"runtime_path": "/usr/bin/crun"})}
    found = plan(desired(), files)
    said = (
        "the default handler x isolates pods: with nvidia as the default, pods without a"
        " RuntimeClass are no longer isolated (--set-as-default=false keeps x)"
    )
    assert found.warnings == ((said,) if is_sandbox else ())
    assert plan(desired(default=None), files).warnings == ()


@pytest.mark.parametrize("words", [("--default-runtime=crun",), ("--default-runtime", "crun")])
def test_a_default_handler_on_the_command_line_is_refused(words: tuple[str, ...]) -> None:
    seen = replace(observe(desired(), {}), argv=("/usr/bin/crio", *words))
    with pytest.raises(UnsupportedSetup) as caught:
        planner.plan(ADAPTER, desired(), seen)
    assert (
        caught.value.why
        == "crio runs with --default-runtime, which takes precedence over its configuration files"
    )
    assert not planner.plan(ADAPTER, desired(default=None), seen).is_noop
    same = replace(seen, argv=("/usr/bin/crio", "--default-runtime=nvidia"))
    assert not planner.plan(ADAPTER, desired(), same).is_noop


def test_the_built_in_handler_is_the_source_where_no_file_says_one() -> None:
    after, _ = installed(desired(), {}, ask=model)
    assert handlers(after[DROP_IN])["nvidia"] == {
        "runtime_path": pure_plan.HANDLERS[0].binary,
        "runtime_type": "oci",
        "runtime_root": "/run/crun",
    }


def test_what_a_file_says_goes_before_what_is_built_in() -> None:
    after, _ = installed(desired(), {PACKAGE: toml(crun=crun("/mine"))}, ask=model)
    assert handlers(after[DROP_IN])["nvidia"]["runtime_root"] == "/mine"


def test_in_place_the_remembered_default_is_the_source() -> None:
    files = {CONFIG: toml("runc", runc=crun("/runc"), crun=crun("/crun"))}
    first, owned = installed(IN_PLACE, files)
    assert runtime(first[CONFIG])["default_runtime"] == "nvidia"
    changed = {CONFIG: first[CONFIG].replace(b'"/runc"', b'"/other"', 1)}
    second, _ = installed(IN_PLACE, changed, owned)
    assert handlers(second[CONFIG])["nvidia"]["runtime_root"] == "/other"


# --- where our keys go ----------------------------------------------------------------------------


def test_a_fresh_drop_in_holds_our_keys_alone_below_the_banner() -> None:
    files = {CONFIG: toml("crun", crun=crun("/conf"))}
    found = plan(desired(), files)
    [change] = found.changes
    assert (change.path, change.action) == (DROP_IN, "create")
    assert (change.after or b"").startswith(ADAPTER.banner.encode())
    content = tomli.loads((change.after or b"").decode())
    assert content.keys() == {"crio"}
    assert content["crio"].keys() == {"runtime"}
    assert content["crio"]["runtime"].keys() == {"default_runtime", "runtimes"}
    assert list(content["crio"]["runtime"]["runtimes"]) == [
        handler.name for handler in pure_plan.HANDLERS
    ]


def test_a_drop_in_of_ours_is_written_anew() -> None:
    """What ours inherited and the source has no more goes."""
    first, owned = installed(
        desired(), {CONFIG: toml("crun", crun=crun("/conf", monitor_path="/m"))}
    )
    assert handlers(first[DROP_IN])["nvidia"]["monitor_path"] == "/m"
    changed = {**first, CONFIG: toml("crun", crun=crun("/new"))}
    second, owned = installed(desired(), changed, owned)
    assert handlers(second[DROP_IN])["nvidia"].get("monitor_path") is None
    assert handlers(second[DROP_IN])["nvidia"]["runtime_root"] == "/new"
    assert pure_plan.after(second, removal(desired(), second, owned)) == {CONFIG: changed[CONFIG]}


def test_a_drop_in_of_ours_has_no_history() -> None:
    """Whatever it held before, it is as a first run would write it."""
    files = {CONFIG: toml("crun", crun=crun("/conf"))}
    wish = desired(handlers=RENAMED, default="gpu")
    first, owned = installed(desired(), files)
    second, _ = installed(wish, first, owned)
    assert second == installed(wish, files)[0]


def test_in_place_too_a_key_goes_with_its_source() -> None:
    first, owned = installed(
        IN_PLACE, {CONFIG: toml("crun", crun=crun("/conf", monitor_path="/m"))}
    )
    assert first[CONFIG].count(b'monitor_path = "/m"\n') == 1 + len(NAMES)
    changed = {CONFIG: first[CONFIG].replace(b'monitor_path = "/m"\n', b"", 1)}
    assert "monitor_path" not in handlers(changed[CONFIG])["crun"]
    second, _ = installed(IN_PLACE, changed, owned)
    assert b"monitor_path" not in second[CONFIG]


def test_a_drop_in_that_somebody_edited_is_edited() -> None:
    first, owned = installed(desired(), {CONFIG: toml("crun", crun=crun("/conf"))})
    theirs = b'\n# mine\n[crio.image]\npause_image = "x"\n'
    edited = {**first, DROP_IN: first[DROP_IN] + theirs, CONFIG: toml("crun", crun=crun("/new"))}
    second, owned = installed(desired(), edited, owned)
    assert second[DROP_IN].endswith(theirs)
    assert handlers(second[DROP_IN])["nvidia"]["runtime_root"] == "/new"
    assert plan(desired(), second, owned).is_noop
    left = pure_plan.after(second, removal(desired(), second, owned))
    assert solid(tomli.loads(left[DROP_IN].decode())) == {"crio": {"image": {"pause_image": "x"}}}
    assert b"# mine" in left[DROP_IN]


def test_a_drop_in_that_was_there_is_edited_and_given_back() -> None:
    before = (
        b'# theirs\n[crio.runtime.runtimes.nvidia]\nruntime_path = "/v"\nruntime_config_path ='
        b' "/c"\n'
    )
    files = {DROP_IN: before}
    after, owned = installed(desired(), files)
    assert after[DROP_IN].startswith(b"# theirs\n")
    assert handlers(after[DROP_IN])["nvidia"] == {
        "runtime_path": pure_plan.HANDLERS[0].binary,
        "runtime_type": "oci",
        "runtime_config_path": "/c",
    }
    assert pure_plan.after(after, removal(desired(), after, owned)) == files


def test_without_a_drop_in_the_keys_go_into_crio_conf() -> None:
    files = {CONFIG: b'# top\n[crio.runtime]\nselinux = true # on\ndefault_runtime = "crun"\n'}
    after, owned = installed(IN_PLACE, files)
    assert after.keys() == {CONFIG}
    assert after[CONFIG].startswith(b"# top\n[crio.runtime]\nselinux = true # on\n")
    assert runtime(after[CONFIG])["default_runtime"] == "nvidia"
    assert handlers(after[CONFIG]).keys() == NAMES
    assert pure_plan.after(after, removal(IN_PLACE, after, owned)) == files


@pytest.mark.parametrize("way", WAYS)
def test_an_absent_crio_conf_is_made_where_there_is_no_drop_in_and_taken_away(way: str) -> None:
    after, owned = installed(IN_PLACE, {}, ask=WAYS[way])
    assert runtime(after[CONFIG])["default_runtime"] == "nvidia"
    assert pure_plan.after(after, removal(IN_PLACE, after, owned, WAYS[way])) == {}


def test_it_is_said_that_no_binary_looked_at_it() -> None:
    assert plan(desired(), {}).notes == (
        (
            "no crio binary was found: only the structure of the files was checked, the change was"
            " not validated by CRI-O"
        ),
    )
    assert plan(desired(), {}, ask=model).notes == ()


# --- the default ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wish", [desired(), IN_PLACE], ids=["drop-in", "in place"])
def test_a_default_that_is_wished_no_more_gives_way_to_the_one_before(
    wish: Desired, way: str
) -> None:
    ask, files = WAYS[way], {CONFIG: toml("runc", runc=crun("/runc"))}
    first, owned = installed(wish, files, ask=ask)
    assert effective(first)["runtime"]["default_runtime"] == "nvidia"
    second, owned = installed(replace(wish, default=None), first, owned, ask)
    assert effective(second)["runtime"]["default_runtime"] == "runc"
    assert effective(second)["runtime"]["runtimes"].keys() >= NAMES
    assert plan(replace(wish, default=None), second, owned, ask).is_noop
    assert pure_plan.after(second, removal(wish, second, owned, ask)) == files


def test_a_default_that_is_not_wished_is_not_written() -> None:
    after, _ = installed(desired(default=None), {CONFIG: toml("crun", crun=crun("/conf"))})
    assert "default_runtime" not in runtime(after[DROP_IN])


def test_in_place_a_default_of_somebody_else_stays_where_ours_is_not_wished() -> None:
    first, owned = installed(IN_PLACE, {CONFIG: toml("runc", runc=crun("/runc"))})
    edited = {
        CONFIG: first[CONFIG].replace(b'default_runtime = "nvidia"', b'default_runtime = "kata"')
    }
    assert runtime(edited[CONFIG])["default_runtime"] == "kata"
    assert plan(replace(IN_PLACE, default=None), edited, owned).is_noop


def test_in_place_a_default_of_the_vendor_stays_where_ours_is_not_wished() -> None:
    files = {CONFIG: toml("nvidia", nvidia=crun("/v"))}
    after, _ = installed(replace(IN_PLACE, default=None), files)
    assert runtime(after[CONFIG])["default_runtime"] == "nvidia"


# --- a renamed handler ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wish", [desired(), IN_PLACE], ids=["drop-in", "in place"])
def test_a_renamed_handler_takes_the_old_name_with_it(wish: Desired, way: str) -> None:
    ask, files = WAYS[way], {CONFIG: toml("crun", crun=crun("/conf"))}
    first, owned = installed(wish, files, ask=ask)
    wish = replace(wish, handlers=RENAMED, default="gpu")
    second, owned = installed(wish, first, owned, ask)
    result = effective(second)["runtime"]
    assert result["runtimes"].keys() == {"crun", "gpu", "nvidia-cdi", "nvidia-legacy"}
    assert result["default_runtime"] == "gpu"
    assert result["runtimes"]["gpu"]["runtime_root"] == "/conf"
    assert plan(wish, second, owned, ask).is_noop
    assert pure_plan.after(second, removal(wish, second, owned, ask)) == files


def test_in_place_a_renamed_handler_that_is_default_no_more_leaves_no_dangling_default() -> None:
    first, owned = installed(IN_PLACE, {CONFIG: toml("crun", crun=crun("/conf"))})
    second, _ = installed(replace(IN_PLACE, handlers=RENAMED, default=None), first, owned)
    assert runtime(second[CONFIG])["default_runtime"] == "crun"


def test_in_place_an_entry_of_somebody_under_our_former_name_stays() -> None:
    first, owned = installed(IN_PLACE, {CONFIG: toml("crun", crun=crun("/conf"))})
    wish = replace(IN_PLACE, handlers=RENAMED, default="gpu")
    second, owned = installed(wish, first, owned)
    theirs = b'[crio.runtime.runtimes.nvidia]\nruntime_path = "/theirs"\n'
    third, _ = installed(wish, {CONFIG: second[CONFIG] + theirs}, owned)
    assert handlers(third[CONFIG])["nvidia"] == {"runtime_path": "/theirs"}


# --- the hook -------------------------------------------------------------------------------------

HOOK_MODE: Final = desired(hook_mode=True)


def hook(path: str) -> bytes:
    return json.dumps({"version": "1.0.0", "hook": {"path": path}, "stages": ["prestart"]}).encode()


@pytest.mark.parametrize(
    "before", [None, b"{}", hook("/x"), b"broken"], ids=["none", "{}", "x", "broken"]
)
def test_in_hook_mode_the_hook_takes_the_place_of_the_handlers(before: bytes | None) -> None:
    files = {CONFIG: toml("crun", crun=crun("/conf"))} | ({} if before is None else {HOOK: before})
    after, owned = installed(HOOK_MODE, files)
    assert after.keys() == {CONFIG, HOOK}
    assert after[CONFIG] == files[CONFIG]
    assert json.loads(after[HOOK]) == {
        "version": "1.0.0",
        "hook": {
            "path": HOOK_BINARY,
            "args": ["nvidia-container-runtime-hook", "prestart"],
            "env": [
                f"PATH={pure_plan.TOOLKIT}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            ],
        },
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    assert plan(HOOK_MODE, after, owned).is_noop
    assert pure_plan.after(after, removal(HOOK_MODE, after, owned)) == files


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drop_in", [DROP_IN, ""], ids=["drop-in", "in place"])
def test_to_hook_mode_and_back(drop_in: str, way: str) -> None:
    ask, files = WAYS[way], {CONFIG: toml("crun", crun=crun("/conf"))}
    config_mode, hook_mode = desired(drop_in=drop_in), desired(drop_in=drop_in, hook_mode=True)
    first, owned = installed(config_mode, files, ask=ask)
    second, owned = installed(hook_mode, first, owned, ask)
    assert second.keys() == {CONFIG, HOOK}
    assert second[CONFIG] == files[CONFIG]
    assert plan(hook_mode, second, owned, ask).is_noop
    third, owned = installed(config_mode, second, owned, ask)
    assert third == first
    assert plan(config_mode, third, owned, ask).is_noop
    assert pure_plan.after(third, removal(config_mode, third, owned, ask)) == files


@pytest.mark.parametrize("place", ["/run/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"])
def test_a_hook_that_crio_would_not_read_is_refused_with_where_it_reads(place: str) -> None:
    """MicroShift and OpenShift name their own directories, since /usr cannot be written there."""
    read = "/etc/containers/oci/hooks.d", "/run/containers/oci/hooks.d"
    root = toml("crun", crun=crun("/conf")).replace(
        b"[crio.runtime]\n", f"[crio.runtime]\nhooks_dir = {json.dumps(read)}\n".encode(), 1
    )
    assert b"hooks_dir" in root
    with pytest.raises(
        UnsupportedSetup, match="CRI-O reads no hooks in /usr/share/containers/oci/"
    ) as no:
        plan(HOOK_MODE, {CONFIG: root}, ask=model)
    assert no.value.hint == f"use --hooks-dir={read[-1]}"
    there = desired(hook_mode=True, hook=f"{place}/oci-nvidia-hook.json")
    assert [change.path for change in plan(there, {CONFIG: root}, ask=model).changes] == [
        there.hook
    ]


OWN_HOOKS: Final = {
    "ours": HOOK_BINARY,
    "an installer's of another place": "/opt/nvidia/toolkit/nvidia-container-runtime-hook",
    "its older name": "/usr/local/nvidia/toolkit/nvidia-container-toolkit",
}


@pytest.mark.parametrize("path", OWN_HOOKS.values(), ids=OWN_HOOKS)
def test_in_config_mode_a_stale_hook_goes_and_comes_back(path: str) -> None:
    files = {HOOK: hook(path)}
    found = plan(desired(), files)
    assert [(change.path, change.action) for change in found.changes] == [
        (DROP_IN, "create"),
        (HOOK, "delete"),
    ]
    assert f"{HOOK} is removed, because it would run the hook a second time" in found.notes
    after, owned = pure_plan.after(files, found), record(ADAPTER, found)
    assert plan(desired(), after, owned).is_noop
    assert pure_plan.after(after, removal(desired(), after, owned)) == files


FOREIGN_HOOKS: Final = {
    "the distribution's": hook("/usr/bin/nvidia-container-runtime-hook"),
    "another program": hook("/usr/libexec/oci-seccomp-bpf-hook"),
    "a name like ours": hook(f"{HOOK_BINARY}.sh"),
    "no path": b'{"hook": {}}',
    "a number": b'{"hook": {"path": 5}}',
    "a list": b"[]",
    "no JSON": b"nvidia-container-runtime-hook",
    "no UTF-8": b"\xff\xfe\xff",
    "no byte": b"",
}


@pytest.mark.parametrize("data", FOREIGN_HOOKS.values(), ids=FOREIGN_HOOKS)
def test_in_config_mode_a_hook_of_others_stays(data: bytes) -> None:
    found = plan(desired(), {HOOK: data})
    assert [change.path for change in found.changes] == [DROP_IN]
    assert not any("hook" in note for note in found.notes)


def test_a_hook_that_somebody_made_anew_stays_and_is_named() -> None:
    after, owned = installed(desired(), {HOOK: hook("/old/toolkit/nvidia-container-toolkit")})
    edited = {**after, HOOK: hook("/new/toolkit/nvidia-container-runtime-hook")}
    back = removal(desired(), edited, owned)
    assert back.stayed == (f"{HOOK}: the whole file (edited since)",)
    assert pure_plan.after(edited, back) == {HOOK: edited[HOOK]}


def test_without_a_hook_file_there_is_nothing_to_say_about_it() -> None:
    assert [change.path for change in plan(desired(hook=""), {}).changes] == [DROP_IN]


def test_to_hook_mode_what_somebody_added_to_our_drop_in_stays() -> None:
    first, owned = installed(desired(), {})
    edited = {**first, DROP_IN: first[DROP_IN] + b'[crio.image]\npause_image = "x"\n'}
    after, _ = installed(HOOK_MODE, edited, owned)
    left = tomli.loads(after[DROP_IN].decode())["crio"]
    # The header of our default stays, empty: it says nothing.
    assert (left.pop("runtime"), left) == ({}, {"image": {"pause_image": "x"}})


@pytest.mark.parametrize("when", ["before", "after"])
def test_in_hook_mode_what_somebody_wrote_into_crio_conf_stays(when: str) -> None:
    wish = replace(IN_PLACE, hook_mode=True)
    theirs = b'[crio.image]\npause_image = "x"\n'
    files, owned = installed(IN_PLACE, {CONFIG: toml("crun", crun=crun("/conf"))})
    if when == "after":
        files, owned = installed(wish, files, owned)
    after, _ = installed(wish, {**files, CONFIG: files[CONFIG] + theirs}, owned)
    assert theirs in after[CONFIG]
    assert handlers(after[CONFIG]).keys() == {"crun"}


# --- what is refused ------------------------------------------------------------------------------

BROKEN: Final = {
    "a table twice": (b"[crio.runtime]\n[crio.runtime]\n", 2, None),
    "cut off": (b'[crio.runtime]\ndefault_runtime = "cr', 2, None),
    "no value": (b"[crio]\nroot =\n", 2, 7),
    "no UTF-8": (b'[crio]\nroot = "\xff"\n', 2, 9),
}


@pytest.mark.parametrize("path", [CONFIG, PACKAGE, DROP_IN, f"{DIRECTORY}/sub/.x"])
@pytest.mark.parametrize(("data", "line", "column"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_line_and_column(
    data: bytes, line: int, column: int | None, path: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), {path: data})
    assert (caught.value.path, caught.value.line) == (path, line)
    assert caught.value.column is not None
    assert column in {None, caught.value.column}


def test_what_is_no_text_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), {CONFIG: b"\xff"})
    assert caught.value.hint


WRONG: Final = {
    "crio is an array": (b"[[crio]]\nroot = '/'\n", "its `crio` is not a table"),
    "crio is a text": (b"crio = 'x'\n", "its `crio` is not a table"),
    "runtime is a number": (b"[crio]\nruntime = 1\n", "its `crio.runtime` is not a table"),
    "runtimes are a list": (
        b"[crio.runtime]\nruntimes = []\n",
        "its `crio.runtime.runtimes` is not a table",
    ),
    "a handler is a text": (b"[crio.runtime.runtimes]\nx = 'y'\n", "its handler x is not a table"),
}


@pytest.mark.parametrize("path", [CONFIG, PACKAGE])
@pytest.mark.parametrize(("data", "why"), WRONG.values(), ids=WRONG)
def test_a_wrong_type_is_refused_with_its_file(data: bytes, why: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), {path: data})
    assert str(caught.value) == f"{path}: {why}"


def test_a_configuration_that_does_not_load_today_is_refused() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        if question.name == "effective":
            return BinaryResult(
                code=1, out="", err="level=debug\nvalidating runtime config: no crun\n\n"
            )
        return model(question)

    with pytest.raises(ConfigError) as caught:
        plan(desired(), {}, ask=ask)
    assert (
        str(caught.value)
        == f"{CONFIG}: /usr/bin/crio does not load its configuration: validating runtime config: no"
        " crun"
    )
    assert caught.value.hint == "CRI-O would not start with it; repair it first"


def test_toml_1_1_is_read_by_crio_or_refused() -> None:
    files = {PACKAGE: toml("crun") + b"[x]\ny = {\n  z = 1,\n}\n"}
    with pytest.raises(ConfigError) as caught:
        plan(desired(), files)
    assert str(caught.value).startswith(f"{PACKAGE}: it is TOML 1.1, and there is no binary")
    assert plan(desired(), files, ask=model).changes


# --- what the binary says -------------------------------------------------------------------------


def lying(
    *, handlers: Content | None = None, runtime: Content | None = None, **crio: Any
) -> pure_plan.Ask:
    """Return the model, but for some keys that it says of a candidate."""

    def ask(question: BinaryQuery) -> BinaryResult:
        answer = model(question)
        if question.name != "candidate":
            return answer
        content = tomli.loads(answer.out)["crio"]
        content = deep(content, crio | {"runtime": (runtime or {}) | {"runtimes": handlers or {}}})
        return BinaryResult(code=0, out=tomlkit.dumps({"crio": content}), err="")

    return ask


LIES: Final = {
    "another key": (
        lying(root="/x"),
        "crio.root would change from '/var/lib/containers/storage' to '/x'",
    ),
    "another key of the runtime": (
        lying(runtime={"selinux": True}),
        "crio.runtime.selinux would change from false to true",
    ),
    "a stray key": (
        lying(handlers={"nvidia": {"timezone": "UTC"}}),
        "crio.runtime.timezone would change from '' to 'UTC'",
    ),
    "a handler of others": (
        lying(handlers={"crun": {"runtime_root": "/x"}}),
        "crio.runtime.runtimes.crun.runtime_root would change from '/run/crun' to '/x'",
    ),
    "another binary": (
        lying(handlers={"nvidia-cdi": {"runtime_path": "/x"}}),
        (
            "the handler nvidia-cdi would run '/x', not"
            " /usr/local/nvidia/toolkit/nvidia-container-runtime.cdi"
        ),
    ),
    "another default": (
        lying(runtime={"default_runtime": "crun"}),
        "the default handler would be 'crun', not nvidia",
    ),
}


@pytest.mark.parametrize(("ask", "message"), LIES.values(), ids=LIES)
def test_a_candidate_with_another_effect_is_refused(ask: pure_plan.Ask, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), {PACKAGE: toml("crun")}, ask=ask)
    assert str(caught.value) == f"{CONFIG}: the change is refused: {message}"


def test_keys_behind_the_last_handler_are_no_keys_of_it() -> None:
    """They stand behind another handler once ours are there, and nothing has changed."""
    files = {CONFIG: b'[crio.runtime]\ntimezone = "UTC"\ndisable_hostport_mapping = true\n'}
    before, after = (
        tomli.loads(model(question).out)["crio"]["runtime"]["runtimes"]
        for question in (
            crio_validate.merged("effective", desired(), files),
            crio_validate.merged("effective", desired(), installed(desired(), files, ask=model)[0]),
        )
    )
    assert before["crun"]["timezone"] == after["nvidia-legacy"]["timezone"] == "UTC"
    assert "timezone" not in after["crun"]
    # Nor are they inherited.
    assert after["nvidia"].keys() == {"runtime_path", "runtime_type", "runtime_root"}


LATER: Final = {
    "the default": (
        toml("crun"),
        "the default handler would be 'crun', not nvidia",
    ),
    "a handler": (
        toml(nvidia={"runtime_path": "/v"}),
        "the handler nvidia would run '/v', not /usr/local/nvidia/toolkit/nvidia-container-runtime",
    ),
}


@pytest.mark.parametrize(("data", "message"), LATER.values(), ids=LATER)
def test_a_file_that_is_read_after_ours_has_the_last_word(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), {f"{DIRECTORY}/zz.conf": data}, ask=model)
    assert str(caught.value) == f"{CONFIG}: the change is refused: {message}"


def test_a_candidate_that_does_not_load_is_refused_with_the_binary_s_words() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        if question.name == "candidate":
            return BinaryResult(code=1, out="", err="level=info\ninvalid runtime_path\n")
        return model(question)

    with pytest.raises(
        ConfigError, match="/usr/bin/crio does not load the change: invalid runtime_path"
    ):
        plan(desired(), {}, ask=ask)


def test_a_removal_that_leaves_what_does_not_load_is_refused() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        return (
            BinaryResult(code=1, out="", err="")
            if question.name == "candidate"
            else model(question)
        )

    after, owned = installed(desired(), {}, ask=model)
    with pytest.raises(
        ConfigError, match="/usr/bin/crio does not load what the removal leaves: no error"
    ):
        removal(desired(), after, owned, ask)


def test_a_binary_that_does_not_print_its_defaults_cannot_judge() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        failed = question.argv == ("config", "--default")
        return BinaryResult(code=1, out="", err="") if failed else model(question)

    seen = observe(desired(), {}, ask=ask)
    found = planner.plan(ADAPTER, desired(), seen)
    assert planner.candidate_query(ADAPTER, desired(), seen, found) is None


@pytest.mark.parametrize("drop_in", [DROP_IN, ""], ids=["drop-in", "in place"])
def test_the_candidate_is_the_plan_among_all_other_files(drop_in: str) -> None:
    wish = desired(drop_in=drop_in)
    files = {
        CONFIG: b"# conf\n",
        PACKAGE: toml("crun"),
        f"{DIRECTORY}/sub/.x": b"# x\n",
        HOOK: hook("/x"),
    }
    seen = observe(wish, files, ask=model)
    found = planner.plan(ADAPTER, wish, seen)
    question = planner.candidate_query(ADAPTER, wish, seen, found)
    assert question is not None
    after = pure_plan.after(files, found)
    assert (question.files, question.names) == ((after[CONFIG],), (CONFIG,))
    inside = {
        path.removeprefix(f"{DIRECTORY}/"): data
        for path, data in after.items()
        if DIRECTORY in path
    }
    assert question.directories == (inside,)
    assert ("99-nvidia.toml" in inside) == bool(drop_in)


def test_what_a_removal_takes_away_is_no_file_of_its_candidate() -> None:
    after, owned = installed(desired(), {}, ask=model)
    seen = observe(desired(), after, owned, model)
    question = planner.candidate_query(ADAPTER, desired(), seen, planner.removal(ADAPTER, seen))
    assert question is not None
    assert question.directories == ({},)


# --- what the daemon says -------------------------------------------------------------------------


def told(default: str, *names: str) -> str:
    """Return what `/config` says: everything, the built-in values too."""
    content = merged([toml(default, **{name: {"runtime_path": f"/{name}"} for name in names})])
    return printed(content, below=None)


_INSTALLED: Final[Mapping[str, bytes | None]] = {
    CONFIG: toml("crun"),
    DROP_IN: toml("nvidia", **{name: {"runtime_path": "/n"} for name in sorted(NAMES)}),
}
_LATER: Final = {f"{DIRECTORY}/zz.conf": toml("crun")}

CONFIRMED: Final[dict[str, tuple[Mapping[str, bytes | None], str, list[str]]]] = {
    "taken up": (_INSTALLED, told("nvidia", *NAMES), []),
    "one is missing": (
        _INSTALLED,
        told("nvidia", "nvidia", "nvidia-cdi"),
        ["CRI-O does not know the handler nvidia-legacy"],
    ),
    "another default": (
        _INSTALLED,
        told("crun", *NAMES),
        ["CRI-O's default handler is crun, not nvidia"],
    ),
    "a later file says the default": (
        {**_INSTALLED, **_LATER},
        told("nvidia", *NAMES),
        ["CRI-O's default handler is nvidia, not crun"],
    ),
    "gone": ({CONFIG: toml("crun"), DROP_IN: None}, told("crun", "theirs"), []),
    "still there": (
        {CONFIG: toml("crun"), DROP_IN: None},
        told("nvidia", "nvidia", "nvidia-legacy"),
        [
            "CRI-O still knows the handler nvidia",
            "CRI-O still knows the handler nvidia-legacy",
            "CRI-O's default handler is nvidia, not crun",
        ],
    ),
    "no file says a default": ({}, told("whatever"), []),
}


@pytest.mark.parametrize(("files", "body", "expected"), CONFIRMED.values(), ids=CONFIRMED)
def test_the_daemon_s_word_is_held_against_the_files(
    files: Mapping[str, bytes | None], body: str, expected: list[str]
) -> None:
    assert list(crio.not_applied(desired(), files, body)) == expected


def test_our_handlers_are_found_in_all_files() -> None:
    files = {
        CONFIG: toml(nvidia={"runtime_path": "/n"}, x={}),
        PACKAGE: toml("", **{"nvidia-cdi": crun("/r")}),
    }
    assert crio.defined(desired(), files) == {"nvidia", "nvidia-cdi"}
    assert crio.defined(desired(), {**files, CONFIG: None}) == {"nvidia-cdi"}
    assert crio.defined(desired(), {}) == frozenset()


BODIES: Final = {
    "no byte": "",
    "no TOML": "<html>",
    "another": "[crio]\nroot = '/'\n",
    "no default": "[crio.runtime.runtimes.crun]\n",
    "a number": "crio = 1\n",
    "a number of handlers": "[crio.runtime]\nruntimes = 1\ndefault_runtime = 'crun'\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_answer_that_cannot_be_read_confirms_nothing(body: str) -> None:
    [problem] = crio.not_applied(desired(), _INSTALLED, body)
    assert problem.startswith("CRI-O's answer cannot be read (")


HANDLER_KEY: Final = "io.kubernetes.cri-o.RuntimeHandler"
INFOS: Final[dict[str, tuple[Content, str]]] = {
    "named": ({"runtimeSpec": {"annotations": {HANDLER_KEY: "nvidia"}}}, "nvidia"),
    "default": ({"runtimeSpec": {"annotations": {HANDLER_KEY: ""}}}, ""),
    "no annotations": ({"runtimeSpec": {"annotations": None}}, ""),
    "no spec": ({}, ""),
}


@pytest.mark.parametrize(("found", "expected"), INFOS.values(), ids=INFOS)
def test_a_pod_s_handler_is_read_from_its_annotations(found: Content, expected: str) -> None:
    assert crio.handler_in(found) == expected


# --- what the toolkit runs in the end -------------------------------------------------------------

LOW_LEVEL: Final[dict[str, tuple[pure_plan.Files, tuple[str, ...]]]] = {
    "nothing said": ({}, ("runc",)),
    "the default first": (
        {CONFIG: toml("b", a={"runtime_path": "/a"}, b={"runtime_path": "/b"})},
        ("/b", "/a"),
    ),
    "by its name where it has no path": (
        {CONFIG: toml("crun", crun={"runtime_root": "/r"})},
        ("crun",),
    ),
    "no virtual machine, no vendor's": (
        {
            CONFIG: toml(
                "kata",
                kata={"runtime_path": "/k", "runtime_type": "vm"},
                gpu={"runtime_path": "/v/nvidia-container-runtime"},
                **{"nvidia-old": {"runtime_path": "/old"}},
            )
        },
        ("runc",),
    ),
}


@pytest.mark.parametrize(("files", "expected"), LOW_LEVEL.values(), ids=LOW_LEVEL)
def test_the_low_level_runtimes(files: pure_plan.Files, expected: tuple[str, ...]) -> None:
    assert plan(desired(), files).low_level == expected


# --- laws -----------------------------------------------------------------------------------------

_KEYS: Final = st.dictionaries(
    st.sampled_from(
        ["runtime_root", "monitor_path", "allowed_annotations", "container_min_memory"]
    ),
    st.sampled_from(['"/run/x"', "'y'", '["a", "b"]', "[\n    'a', # one\n]"]),
    max_size=3,
)


@st.composite
def tables(draw: st.DrawFn, name: str) -> str:
    lines = [f"{key} = {item}" for key, item in draw(_KEYS).items()]
    lines += draw(st.sampled_from([[], ['runtime_path = "/usr/bin/x"']]))
    lines += draw(st.sampled_from([[], ['runtime_type = "oci"'], ['runtime_type = "vm"']]))
    kind = draw(st.sampled_from(["header", "dotted", "inline"]))
    if kind == "header":
        return f"[crio.runtime.runtimes.{name}] # {name}\n" + "".join(
            f"\t{line}\n" for line in lines
        )
    if kind == "inline":
        inline = ", ".join(line for line in lines if "\n" not in line)
        return f"[crio.runtime.runtimes]\n{name} = {{ {inline} }}\n"
    return "[crio.runtime.runtimes]\n" + "".join(f"{name}.{line}\n" for line in lines)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Return one file, its sections in some order."""
    names = draw(
        st.lists(st.sampled_from(["crun", "runc", "kata", "nvidia", "nvidia-old"]), unique=True)
    )
    parts = [draw(tables(name)) for name in names]
    # TOML has a table once only.
    while sum(part.startswith("[crio.runtime.runtimes]\n") for part in parts) > 1:
        parts.remove(next(part for part in parts if part.startswith("[crio.runtime.runtimes]\n")))
    default = draw(st.sampled_from(["", *names, "crun"]))
    parts.append(
        f"[crio.runtime]\nselinux = true\n{default and f'default_runtime = {default!r}'}\n"
    )
    parts += draw(
        st.sampled_from([[], ["[crio.image]\npause_image = 'p' # pause\n"], ["# nothing\n"]])
    )
    parts = draw(st.permutations(parts))
    text = draw(st.sampled_from(["", "# top\n", "\n"])) + draw(st.sampled_from(["", "\n"])).join(
        parts
    )
    text = draw(st.sampled_from([text, text.removesuffix("\n"), text.replace("\n", "\r\n"), ""]))
    return text.encode()


@st.composite
def machines(draw: st.DrawFn) -> dict[str, bytes]:
    places = [CONFIG, PACKAGE, f"{DIRECTORY}/.x", f"{DIRECTORY}/sub/x.conf", DROP_IN]
    files = {path: draw(texts()) for path in places if draw(st.integers(0, 2)) == 0}
    if draw(st.booleans()):
        files[HOOK] = draw(st.sampled_from([hook(HOOK_BINARY), hook("/x")]))
    return files


WISHES: Final = st.builds(
    desired,
    drop_in=st.sampled_from([DROP_IN, DROP_IN, ""]),
    default=st.sampled_from(["nvidia", None]),
    hook_mode=st.sampled_from([False, False, True]),
)
_WAY: Final = st.sampled_from([None, model])


def tried(
    wish: Desired, files: pure_plan.Files, ask: pure_plan.Ask | None
) -> tuple[dict[str, bytes], Owned] | None:
    """Return the files and the record after a run, or None where a later file has the last word."""
    try:
        return installed(wish, files, ask=ask)
    except ConfigError as error:
        refusal = str(error)
    assert "would run" in refusal or "default handler would be" in refusal
    # In place, every drop-in is read after ours.
    assert not wish.drop_in or f"{DIRECTORY}/sub/x.conf" in files
    return None


@LIMITS
@given(WISHES, machines(), _WAY)
def test_idempotent(wish: Desired, files: pure_plan.Files, ask: pure_plan.Ask | None) -> None:
    done = tried(wish, files, ask)
    if done is not None:
        after, owned = done
        assert plan(wish, after, owned, ask).is_noop


@LIMITS
@given(WISHES, machines(), _WAY)
def test_reversible(wish: Desired, files: pure_plan.Files, ask: pure_plan.Ask | None) -> None:
    done = tried(wish, files, ask)
    if done is not None:
        after, owned = done
        back = removal(wish, after, owned, ask)
        assert pure_plan.after(after, back) == files
        assert back.stayed == ()


@LIMITS
@given(machines(), st.lists(WISHES, min_size=2, max_size=3), st.sampled_from([DROP_IN, ""]))
def test_reversible_after_any_wishes(
    files: pure_plan.Files, wishes: list[Desired], drop_in: str
) -> None:
    after, owned = dict(files), cast("Owned", ())
    for wish in wishes:
        after, owned = installed(replace(wish, drop_in=drop_in), after, owned)
    assert pure_plan.after(after, removal(wishes[0], after, owned)) == files


def solid(content: Content) -> Content:
    """Return a tree without empty tables: a header left without keys says nothing."""
    cut = {key: solid(item) if isinstance(item, dict) else item for key, item in content.items()}
    return {key: item for key, item in cut.items() if item != {}}


@LIMITS
@given(WISHES.filter(lambda wish: not wish.hook_mode), machines())
def test_humble(wish: Desired, files: pure_plan.Files) -> None:
    """What somebody adds to a file after us is all that is left of what was not there before us."""
    after, owned = installed(wish, files)
    path = wish.drop_in or wish.config
    theirs = b"\n# mine\n[crio.foreign]\nx = 1\n"
    edited = {**after, path: after.get(path, b"") + theirs}
    back = removal(wish, edited, owned)
    assert back.stayed == ()
    left = pure_plan.after(edited, back)
    before = tomli.loads(files.get(path, b"").decode())
    assert solid(tomli.loads(left[path].decode())) == solid(
        deep(before, {"crio": {"foreign": {"x": 1}}})
    )
    assert b"# mine" in left[path]
    assert {k: v for k, v in left.items() if k != path} == {
        k: v for k, v in files.items() if k != path
    }


@LIMITS
@given(WISHES, machines(), _WAY)
def test_polite(wish: Desired, files: pure_plan.Files, ask: pure_plan.Ask | None) -> None:
    """Only our own file and the hook are written; only our handlers and the default differ."""
    done = tried(wish, files, ask)
    if done is None:
        return
    after = done[0]
    own = {wish.drop_in or wish.config, HOOK}
    assert {path: data for path, data in after.items() if path not in own} == {
        path: data for path, data in files.items() if path not in own
    }
    assert foreign(effective(after)) == foreign(effective(files))
    if ask is not None and not wish.hook_mode:
        result = effective(after)["runtime"]
        assert {h.name: result["runtimes"][h.name]["runtime_path"] for h in wish.handlers} == {
            h.name: h.binary for h in wish.handlers
        }
        assert wish.default in {None, result["default_runtime"]}


def foreign(content: Content) -> Content:
    kept = {k: v for k, v in content["runtime"].items() if k not in {"runtimes", "default_runtime"}}
    others = {k: v for k, v in content["runtime"]["runtimes"].items() if k not in NAMES}
    return content | {"runtime": kept | {"runtimes": others}}


# --- the corpus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["crio.conf", "drop-in", "in place"])
@pytest.mark.parametrize("name", CASES)
def test_the_corpus_leads_there_and_back(name: str, place: str, way: str) -> None:
    if name == "absent":
        pytest.skip(f"there is no corpus beside the project (../{'/'.join(CORPUS.parts[-3:])})")
    ask = WAYS[way]
    path = PACKAGE if place == "drop-in" else CONFIG
    wish = IN_PLACE if place == "in place" else desired()
    files = {path: (CORPUS / name).read_bytes()}
    if name.startswith("broken-"):
        with pytest.raises(ConfigError) as caught:
            plan(wish, files)
        assert caught.value.path == path
        return
    after, owned = installed(wish, files, ask=ask)
    assert place == "in place" or after[path] == files[path]
    assert foreign(effective(after)) == foreign(effective(files))
    result = effective(after)["runtime"]
    assert result["default_runtime"] == "nvidia"
    assert {h.name: result["runtimes"][h.name]["runtime_path"] for h in wish.handlers} == {
        h.name: h.binary for h in wish.handlers
    }
    assert plan(wish, after, owned, ask).is_noop
    assert pure_plan.after(after, removal(wish, after, owned, ask)) == files
    own = wish.drop_in or wish.config
    edited = {**after, own: after[own] + b"\n# mine\n"}
    left = pure_plan.after(edited, removal(wish, edited, owned, ask))
    assert solid(tomli.loads(left.get(own, b"").decode())) == solid(
        tomli.loads(files.get(own, b"").decode())
    )
