"""The containerd dialect without a binary: schema versions, whose options ours inherit, imports."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.containerd import schema
from runtimes.containerd.imports import load
from runtimes.errors import ConfigError, NoCgroupDriver
from runtimes.model import (
    ABSENT,
    BinaryQuery,
    BinaryResult,
    ConfigPlan,
    FileRequest,
    Handler,
    Observation,
)
from tests.support import pure_plan

CRI: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
V2: Final = f'plugins."{CRI[2]}"'
RUNC: Final = f"""\
version = 2
[{V2}.containerd]
default_runtime_name = "runc"
[{V2}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{V2}.containerd.runtimes.runc.options]
BinaryName = "/usr/bin/runc"
SystemdCgroup = true
"""


def section(found: ConfigPlan, version: int = 2, path: str = pure_plan.CONFIG) -> Any:
    """Return the CRI section as a plan leaves it in a file."""
    change = next(change for change in found.changes if change.path == path)
    content = tomllib.loads((change.after or b"").decode())
    assert content.get("version", 1) == version
    return content["plugins"][CRI[version]]


def planned(text: str, **wish: Any) -> ConfigPlan:
    return pure_plan.plan(pure_plan.desired(**wish), {pure_plan.CONFIG: text.encode()})


def nvidia(found: ConfigPlan, version: int = 2) -> dict[str, Any]:
    handler: dict[str, Any] = section(found, version)["containerd"]["runtimes"]["nvidia"]
    return handler


# --- schema versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", CRI)
def test_each_schema_version_has_its_own_section(version: int) -> None:
    found = planned(f"version = {version}\n")
    runtimes = section(found, version)["containerd"]["runtimes"]
    names = {handler.name: handler.binary for handler in pure_plan.HANDLERS}
    assert {name: runtimes[name]["options"]["BinaryName"] for name in names} == names
    assert section(found, version)["containerd"]["default_runtime_name"] == "nvidia"
    assert all(runtimes[name]["runtime_type"] == "io.containerd.runc.v2" for name in names)


NEW_ROOTS: Final[Mapping[str, pure_plan.Files]] = {
    "absent": {},
    "empty": {pure_plan.CONFIG: b""},
    "comments": {pure_plan.CONFIG: b"# all defaults\n"},
}


@pytest.mark.parametrize("files", NEW_ROOTS.values(), ids=NEW_ROOTS)
def test_a_root_that_says_nothing_gets_a_version(files: pure_plan.Files) -> None:
    found = pure_plan.plan(pure_plan.desired(), files)
    [change] = found.changes
    assert change.action == ("modify" if files else "create")
    assert section(found)["containerd"]["runtimes"].keys() == {
        "runc",
        "nvidia",
        "nvidia-cdi",
        "nvidia-legacy",
    }


def test_no_version_means_the_first() -> None:
    assert "nvidia" in section(planned('root = "/x"\n'), 1)["containerd"]["runtimes"]


UNKNOWN: Final = {"newer": "9", "older": "0", "text": '"2"', "true": "true", "fraction": "2.0"}


@pytest.mark.parametrize("version", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_version_is_refused_with_the_known_ones(version: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(f"version = {version}\n")
    said = repr(tomllib.loads(f"v = {version}")["v"])
    assert (
        str(caught.value)
        == f"{pure_plan.CONFIG}: schema version {said} is not supported: must be one of 1, 2, 3, 4"
    )
    assert caught.value.hint == "a newer nvidia-toolkit may support it"


def test_the_first_version_names_the_binary_for_both_shims() -> None:
    options = nvidia(planned("version = 1\n"), 1)["options"]
    assert options["BinaryName"] == options["Runtime"] == pure_plan.HANDLERS[0].binary


def test_the_legacy_way_of_the_default() -> None:
    found = planned("[plugins.cri.containerd]\n", legacy=True)
    assert "default_runtime_name" not in section(found, 1)["containerd"]
    assert section(found, 1)["containerd"]["default_runtime"] == nvidia(found, 1)


def test_the_legacy_way_is_for_the_first_version_only() -> None:
    assert section(planned(RUNC, legacy=True))["containerd"]["default_runtime_name"] == "nvidia"


# --- the default ----------------------------------------------------------------------------------


def test_the_default_is_left_to_others_unless_asked() -> None:
    containerd_ = section(planned(RUNC, default=None))["containerd"]
    assert containerd_["default_runtime_name"] == "runc"
    assert "nvidia" in containerd_["runtimes"]


def test_a_default_of_ours_is_given_back_when_it_is_no_longer_wanted() -> None:
    files = {pure_plan.CONFIG: RUNC.replace('"runc"', '"crun"', 1).encode()}
    first = pure_plan.plan(pure_plan.desired(), files)
    found = pure_plan.plan(
        pure_plan.desired(default=None),
        pure_plan.after(files, first),
        owned=pure_plan.ownership(first),
    )
    assert section(found)["containerd"]["default_runtime_name"] == "crun"


def test_a_default_that_others_gave_to_our_handler_is_theirs() -> None:
    text = BEFORE_US.replace('default_runtime_name = "runc"', 'default_runtime_name = "nvidia"')
    found = planned(text, default=None)
    assert section(found)["containerd"]["default_runtime_name"] == "nvidia"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The default handler and the others, and what ours are a copy of."""

    default: str
    runtimes: dict[str, dict[str, Any]]
    table: dict[str, Any]
    low_level: tuple[str, ...] = ("runc",)


RUNC_V2: Final = "io.containerd.runc.v2"
PLAIN: Final = {"runtime_type": RUNC_V2, "options": {"SystemdCgroup": True}}
SOURCES: Final = {
    "runc": Source(default="runc", runtimes={"runc": PLAIN}, table=PLAIN),
    "crun": Source(
        default="crun",
        runtimes={"crun": {**PLAIN, "options": {"BinaryName": "/usr/bin/crun", "Root": "/r"}},
                  "runc": PLAIN},
        table={"runtime_type": RUNC_V2, "options": {"Root": "/r"}},
        low_level=("/usr/bin/crun", "runc"),
    ),
    "crun alone": Source(
        default="", runtimes={"crun": {**PLAIN, "options": {"BinaryName": "crun"}}},
        table={"runtime_type": RUNC_V2, "options": {}}, low_level=("crun",),
    ),
    "gvisor": Source(
        default="runsc",
        runtimes={"runsc": {"runtime_type": "io.containerd.runsc.v1"}, "runc": PLAIN},
        table=PLAIN,
    ),
    "kata": Source(
        default="kata",
        runtimes={"kata": {"runtime_type": "io.containerd.kata.v2",
                           "privileged_without_host_devices": True}},
        table={"runtime_type": RUNC_V2, "options": {"SystemdCgroup": True}},
    ),
    "nvidia of somebody else": Source(
        default="nvidia",
        runtimes={
            "nvidia": {"runtime_type": RUNC_V2, "options": {"BinaryName": "/old", "Root": "/n"}},
            "runc": PLAIN,
        },
        table={"runtime_type": RUNC_V2, "options": {"SystemdCgroup": True, "Root": "/n"}},
    ),
    "nvidia of another installer": Source(
        default="nvidia-experimental",
        runtimes={"nvidia-experimental": {"runtime_type": RUNC_V2, "options": {"Root": "/n"}},
                  "runc": PLAIN},
        table=PLAIN,
    ),
    "empty type": Source(
        default="runc",
        runtimes={"runc": {"runtime_type": "", "options": {"SystemdCgroup": True}}},
        table=PLAIN,
    ),
    "no type": Source(default="runc", runtimes={"runc": {"options": {"Root": "/r"}}},
        table={"runtime_type": RUNC_V2, "options": {"Root": "/r"}}),
    "no options": Source(
        default="runc",
        runtimes={"runc": {"runtime_type": RUNC_V2, "base_runtime_spec": "/s.json"}},
        table={"runtime_type": RUNC_V2, "base_runtime_spec": "/s.json", "options": {}},
    ),
    "default that does not exist": Source(default="gone", runtimes={"runc": PLAIN}, table=PLAIN),
}  # fmt: skip


def written(source: Source) -> str:
    """Write handlers as a version 2 file."""
    lines = ["version = 2", f"[{V2}.containerd]"]
    if source.default:
        lines.append(f'default_runtime_name = "{source.default}"')
    for name, table in source.runtimes.items():
        for suffix, keys in (("", table), (".options", table.get("options", {}))):
            lines.append(f"[{V2}.containerd.runtimes.{name}{suffix}]")
            lines += [f"{k} = {toml(v)}" for k, v in keys.items() if not isinstance(v, dict)]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    return (
        {True: "true", False: "false"}.get(value, f'"{value}"')
        if isinstance(value, bool)
        else f'"{value}"'
    )


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("crun", ("crun", "crun")),
        ("crun alone", ("crun", "runc")),
        ("gvisor", ("runc", "runsc")),
        ("kata", ("runc", "kata")),
        ("nvidia of somebody else", ("runc", "runc")),
    ],
)
def test_the_handlers_that_ours_are_made_from(name: str, origin: tuple[str, str]) -> None:
    found = planned(written(SOURCES[name]), systemd_cgroup=True).origin
    assert (found.source, found.default) == origin
    assert found.settings == SOURCES[name].runtimes.get(origin[0], {})
    assert planned(written(SOURCES[name]), default=None, systemd_cgroup=True).origin.default == ""


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_ours_have_the_options_of_the_handler_they_stand_in_for(source: Source) -> None:
    found = planned(written(source), systemd_cgroup=True)
    handler = nvidia(found)
    assert handler["options"].pop("BinaryName") == pure_plan.HANDLERS[0].binary
    assert handler == source.table
    assert found.low_level == source.low_level
    runtimes = section(found)["containerd"]["runtimes"]
    for name, table in source.runtimes.items():
        if name != "nvidia":
            assert runtimes[name] == {**table, "options": table.get("options", {})}


SANDBOX: Final = f"""\
version = 2
[{V2}.containerd]
default_runtime_name = "%s"
[{V2}.containerd.runtimes.%s]
runtime_type = "io.containerd.%s"
"""


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("kata-qemu", "kata-qemu.v2"), ("runsc", "runsc.v1")])
def test_without_a_handler_of_runc_the_cgroup_driver_is_the_kubelet_s(
    name: str, kind: str, *, driver: bool
) -> None:
    text = SANDBOX % (name, name, kind)
    assert nvidia(planned(text, systemd_cgroup=driver))["options"]["SystemdCgroup"] is driver
    with pytest.raises(NoCgroupDriver) as caught:
        planned(text, systemd_cgroup=None)
    assert (
        caught.value.why
        == f"no handler of runc shows the cgroup driver (the default is {name}), and no kubelet was"
        " found"
    )
    override = {"options": {"SystemdCgroup": driver}}
    found = planned(text, systemd_cgroup=None, override=override)
    assert nvidia(found)["options"]["SystemdCgroup"] is driver


@pytest.mark.parametrize(
    ("name", "kind", "is_sandbox"),
    [("kata", "kata.v2", True), ("runsc", "runsc.v1", True), ("mine", "runc.v2", False)],
)
def test_a_default_that_isolates_pods_is_not_replaced_without_a_word(
    name: str, kind: str, *, is_sandbox: bool
) -> None:
    text = SANDBOX % (name, name, kind)
    found = planned(text, systemd_cgroup=True)
    said = (
        f"the default handler {name} isolates pods: with nvidia as the default, pods without a"
        f" RuntimeClass are no longer isolated (--set-as-default=false keeps {name})"
    )
    assert found.warnings == ((said,) if is_sandbox else ())
    assert set(found.warnings) <= set(found.notes)
    assert planned(text, systemd_cgroup=True, default=None).warnings == ()


def test_the_wished_type_is_for_a_handler_that_inherits_none() -> None:
    found = planned("version = 2\n", runtime_type="io.containerd.runc.v1")
    assert nvidia(found)["runtime_type"] == "io.containerd.runc.v1"


def test_annotations_are_added_to_those_that_are_inherited() -> None:
    text = RUNC.replace(
        "\nruntime_type", '\ncontainer_annotations = ["a*", "cdi.k8s.io*"]\nruntime_type'
    )
    found = planned(text, annotations=("cdi.k8s.io*", "nvidia.cdi.k8s.io*"))
    assert nvidia(found)["container_annotations"] == ["a*", "cdi.k8s.io*", "nvidia.cdi.k8s.io*"]


# --- what is there already ------------------------------------------------------------------------

BEFORE_US: Final = f"""\
{RUNC}
[{V2}.containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v1"
pod_annotations = ["x"]
[{V2}.containerd.runtimes.nvidia.options]
KEY = "/usr/bin/nvidia-container-runtime"
NoPivotRoot = true
"""


@pytest.mark.parametrize("spelling", ["BinaryName", "binaryName", "binaryname", "BINARYNAME"])
def test_a_handler_that_was_there_runs_our_binary_and_keeps_its_own_keys(spelling: str) -> None:
    handler = nvidia(planned(BEFORE_US.replace("KEY", spelling)))
    assert handler == {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["x"],
        "options": {
            "BinaryName": pure_plan.HANDLERS[0].binary,
            "SystemdCgroup": True,
            "NoPivotRoot": True,
        },
    }


def test_the_source_s_other_spelling_is_not_inherited() -> None:
    options = nvidia(planned(RUNC.replace("BinaryName", "binaryName")))["options"]
    assert options == {"BinaryName": pure_plan.HANDLERS[0].binary, "SystemdCgroup": True}


def test_a_handler_under_its_former_name_goes() -> None:
    files = {pure_plan.CONFIG: RUNC.encode()}
    first = pure_plan.plan(pure_plan.desired(), files)
    renamed = (Handler(name="gpu", binary=pure_plan.HANDLERS[0].binary), *pure_plan.HANDLERS[1:])
    second = pure_plan.plan(
        pure_plan.desired(handlers=renamed, default="gpu"),
        pure_plan.after(files, first),
        owned=pure_plan.ownership(first),
    )
    runtimes = section(second)["containerd"]["runtimes"]
    assert runtimes.keys() == {"runc", "gpu", "nvidia-cdi", "nvidia-legacy"}
    assert section(second)["containerd"]["default_runtime_name"] == "gpu"


WRONG: Final = {
    "handler": (
        f'[{V2}.containerd.runtimes]\nrunc = "x"\n',
        f"{pure_plan.CONFIG}: its handler runc is not a table",
    ),
    "runtimes": (
        f"[{V2}.containerd]\nruntimes = []\n",
        f"{pure_plan.CONFIG}: its `runtimes` is not a table",
    ),
    "containerd": (
        f"[{V2}]\ncontainerd = 1\n",
        f"{pure_plan.CONFIG}: its `containerd` is not a table",
    ),
    "imports": ('imports = "x"\n', f"{pure_plan.CONFIG}: its `imports` is not an array of strings"),
    "an import": (
        "imports = [1]\n",
        f"{pure_plan.CONFIG}: its `imports` is not an array of strings",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_value_of_the_wrong_kind_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(f"version = 2\n{text}")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text", ["plugins = []\n", f'[plugins]\n"{CRI[2]}" = 1\n'], ids=["plugins", "section"]
)
def test_a_section_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a table") as caught:
        planned(f"version = 2\n{text}")
    assert caught.value.path == pure_plan.CONFIG


@pytest.mark.parametrize("wish", [True, None], ids=["wanted", "left alone"])
def test_cdi_is_switched_on_in_the_section_itself(wish: bool | None) -> None:  # noqa: FBT001
    found = planned(RUNC, enable_cdi=wish)
    assert section(found).get("enable_cdi", ABSENT) == (wish or ABSENT)
    assert "enable_cdi" not in section(found)["containerd"]


def test_a_missing_runc_is_written_down_where_a_file_would_lose_it() -> None:
    runtimes = section(planned("version = 2\n"))["containerd"]["runtimes"]
    assert runtimes["runc"] == {"runtime_type": "io.containerd.runc.v2"}


def test_a_runc_that_somebody_left_out_is_not_brought_back() -> None:
    text = f'version = 2\n[{V2}.containerd.runtimes.kata]\nruntime_type = "io.containerd.kata.v2"\n'
    assert "runc" not in section(planned(text))["containerd"]["runtimes"]


# --- imports --------------------------------------------------------------------------------------


def imports(*patterns: str) -> bytes:
    return f"version = 2\nimports = {list(patterns)!r}\n".encode()


A: Final = "/etc/containerd/a.toml"
B: Final = "/etc/containerd/d/b.toml"
HIDDEN: Final = "/etc/containerd/d/.b.toml"
NOTHING: Final = b"version = 2\n"
GRAPHS: Final[Mapping[str, tuple[pure_plan.Files, list[str]]]] = {
    "none": ({pure_plan.CONFIG: NOTHING, A: NOTHING}, []),
    "by name": ({pure_plan.CONFIG: imports(A), A: NOTHING}, [A]),
    "glob, leading dot too": (
        {pure_plan.CONFIG: imports("/etc/containerd/d/*.toml"), B: NOTHING, HIDDEN: NOTHING},
        [HIDDEN, B],
    ),
    "glob not over slashes": (
        {pure_plan.CONFIG: imports("/etc/containerd/*.toml"), A: NOTHING, B: NOTHING},
        [A],
    ),
    "relative": ({pure_plan.CONFIG: imports("a.toml", "d/*.toml"), A: NOTHING, B: NOTHING}, [A, B]),
    "relative with dots": ({pure_plan.CONFIG: imports("./d/../a.toml"), A: NOTHING}, [A]),
    "relative to the importing file": (
        {pure_plan.CONFIG: imports(B), B: imports("../a.toml"), A: NOTHING},
        [B, A],
    ),
    "itself": ({pure_plan.CONFIG: imports(pure_plan.CONFIG)}, []),
    "itself by glob": ({pure_plan.CONFIG: imports("/etc/containerd/*.toml"), A: NOTHING}, [A]),
    "twice": ({pure_plan.CONFIG: imports(A, "/etc/containerd/*.toml", A), A: NOTHING}, [A]),
    "in a circle": (
        {pure_plan.CONFIG: imports(A), A: imports(B), B: imports(pure_plan.CONFIG)},
        [A, B],
    ),
    "breadth first": (
        {pure_plan.CONFIG: imports(A, B), A: imports(HIDDEN), B: NOTHING, HIDDEN: NOTHING},
        [A, B, HIDDEN],
    ),
    "missing": ({pure_plan.CONFIG: imports(A)}, []),
}


@pytest.mark.parametrize(("files", "order"), GRAPHS.values(), ids=GRAPHS)
def test_files_are_followed_as_containerd_does(files: pure_plan.Files, order: list[str]) -> None:
    wish = pure_plan.desired(drop_in="")
    seen = pure_plan.observe(wish, files)
    loaded, missing = load(wish, seen)
    assert [file.path for file in loaded] == [pure_plan.CONFIG, *order]
    assert missing == FileRequest()


MATCHES: Final = {
    "same": ("/a/b.toml", "/a/b.toml", True),
    "star": ("/a/*.toml", "/a/b.toml", True),
    "star, leading dot": ("/a/*.toml", "/a/.b.toml", True),
    "star, nothing": ("/a/*.toml", "/a/.toml", True),
    "star, slash": ("/a/*.toml", "/a/b/c.toml", False),
    "other end": ("/a/*.toml", "/a/b.conf", False),
    "more behind": ("/a/*.toml", "/a/b.toml~", False),
    "dot is a dot": ("/a/*.toml", "/a/btoml", False),
    "directory": ("/*/b.toml", "/a/b.toml", True),
    "question mark without a star is a name": ("/a/?.toml", "/a/b.toml", False),
    "question mark beside a star": ("/a/?*.toml", "/a/.toml", False),
    "class": ("/a/[0-9]*.toml", "/a/10.toml", True),
    "class, not in it": ("/a/[0-9]*.toml", "/a/b.toml", False),
    "class, negated": ("/a/[^0-9]*.toml", "/a/b.toml", True),
}


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES.values(), ids=MATCHES)
def test_a_pattern_matches_as_in_go(pattern: str, path: str, expected: bool) -> None:  # noqa: FBT001 - a column
    assert schema.matches(pattern, path) is expected


def test_without_a_binary_the_plan_says_so() -> None:
    assert planned(RUNC).notes == (
        (
            "no containerd binary was found: only the structure of the files was checked, the"
            " change was not validated by containerd"
        ),
    )


# --- a binary that cannot tell --------------------------------------------------------------------


def test_a_binary_that_does_not_print_its_defaults_is_named() -> None:
    def ask(_: BinaryQuery) -> BinaryResult:
        return BinaryResult(code=1, out="", err="boom")

    found = pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: RUNC.encode()}, ask)
    assert found.notes == (
        "/usr/bin/containerd did not print its defaults, so it cannot validate the change",
    )
    assert [change.path for change in found.changes] == [pure_plan.CONFIG]


def test_a_root_that_its_own_binary_does_not_load_is_refused() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        if question.name == "effective":
            return BinaryResult(
                code=1, out="", err="warning\ncontainerd: invalid disabled plugin URI\n"
            )
        return BinaryResult(code=0, out="version = 2\n", err="")

    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: RUNC.encode()}, ask)
    assert (
        str(caught.value)
        == f"{pure_plan.CONFIG}: /usr/bin/containerd does not load it: invalid disabled plugin URI"
    )
    assert (
        caught.value.hint == "containerd would not start with this configuration; repair it first"
    )


def test_a_root_in_toml_1_1_is_refused_with_what_to_write_where_its_binary_does_not_read_it() -> (
    None
):
    def ask(question: BinaryQuery) -> BinaryResult:
        if question.name == "effective":
            return BinaryResult(
                code=1, out="", err="containerd: toml: invalid character at start of key: \n"
            )
        return BinaryResult(code=0, out="version = 2\n", err="")

    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: b"grpc = {\n uid = 0,\n}\n"}, ask)
    assert caught.value.why.endswith("does not load it: toml: invalid character at start of key:")
    assert "write inline tables on one line without a comma at the end" in caught.value.hint


def test_toml_1_1_is_refused_where_no_binary_can_load_it() -> None:
    """containerd 1.7 would not start again with it; no rollback would help: it was there before."""
    files = {pure_plan.CONFIG: RUNC.encode() + b"[x]\ny = { z = 1, }\n"}
    refusal = pure_plan.refusal(pure_plan.desired(), files)
    assert refusal is not None
    assert refusal.why.startswith("it is TOML 1.1, and there is no binary")
    assert "one line without a comma at the end" in refusal.hint


def test_imports_that_only_toml_1_1_can_read_are_not_staged_in_another_spelling() -> None:
    """The binary gets other paths: it would load what it does not load in the file."""
    data = b'version = 2\nimports = ["/etc/containerd/\\x61.toml"]\n'
    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(
            pure_plan.desired(),
            {pure_plan.CONFIG: data, "/etc/containerd/a.toml": b"version = 2\n"},
            lambda _: BinaryResult(code=0, out="version = 2\n", err=""),
        )
    assert caught.value.why.startswith("its `imports` has an escape of TOML 1.1")


STATES: Final = {
    "default": ("version = 2\n", "/run/containerd"),
    "moved": ('state = "/x"\n', "/x"),
}


@pytest.mark.parametrize(("dump", "state"), STATES.values(), ids=STATES)
def test_shims_are_looked_for_below_the_state_directory(dump: str, state: str) -> None:
    seen = Observation(results={"effective": BinaryResult(code=0, out=dump, err="")})
    assert containerd.task_files(pure_plan.desired(), seen) == (
        f"{state}/io.containerd.runtime.v2.task/*/*/runtime",
    )
