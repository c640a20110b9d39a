"""The laws of a plan, over generated containerd configs: idempotent, reversible, polite, humble.

Each holds in place (no binary) and with a drop-in, for which a small model of containerd 2 answers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes import planner
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import BinaryQuery, BinaryResult, ConfigPlan, FileChange, Key, Ownership, token
from tests.support import pure_plan

CRI: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
# A loop to work in: the campaign with more examples is tests/fuzz.
LIMITS: Final = settings(deadline=None, max_examples=40)
OURS: Final = frozenset(handler.name for handler in pure_plan.HANDLERS)


# --- a model of containerd 2 ----------------------------------------------------------------------


def modern(question: BinaryQuery) -> BinaryResult:
    """Answer as containerd 2.1: imports are merged deeply, and what it prints has version 3."""
    if question.name == "default":
        return BinaryResult(code=0, out="version = 3\nimports = []\n", err="")
    merged: dict[str, Any] = {"plugins": {CRI[3]: {"containerd": {"default_runtime_name": "runc"}}}}
    pending, done = [0], set()
    while pending:
        index = pending.pop(0)
        if index in done:
            continue
        done.add(index)
        content = tomllib.loads(question.files[index].decode().removeprefix("\ufeff"))
        names = {token(i): i for i in range(len(question.files))}
        pending += [names[name] for name in content.pop("imports", []) if name in names]
        plugins = content.get("plugins", {})
        if CRI[2] in plugins:
            plugins.setdefault(CRI[3], plugins.pop(CRI[2]))
        merged = deep(merged, content)
    merged["version"] = 3
    document = toml_editor.put(toml_editor.parse(b"", "dump"), ("all",), merged)
    # Headers of `[all.x]`, without the `all.`.
    text = document.encode().decode().replace("[all]\n", "").replace("[all.", "[")
    return BinaryResult(code=0, out=text, err="")


def deep(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for key, item in other.items():
        below = result.get(key)
        result[key] = (
            deep(below, item) if isinstance(item, dict) and isinstance(below, dict) else item
        )
    return result


WAYS: Final[dict[str, pure_plan.Ask | None]] = {"in place": None, "drop-in": modern}


# --- configurations -------------------------------------------------------------------------------

_OPTIONS: Final = st.sets(
    st.sampled_from([("SystemdCgroup", "true"), ("Root", '"/r"'), ("NoPivotRoot", "true")]),
    max_size=2,
).map(lambda pairs: dict(sorted(pairs)))
_BINARIES: Final = st.sampled_from(["", 'BinaryName = "/usr/bin/x"', "binaryName = '/usr/bin/x'"])
_TYPES: Final = st.sampled_from(
    ["io.containerd.runc.v2", "io.containerd.runc.v1", "io.containerd.kata.v2", ""]
)


@st.composite
def handlers(draw: st.DrawFn, prefix: str, name: str) -> list[str]:
    """Return the sections of one handler; each is a text of its own, so that order is free."""
    options = draw(_OPTIONS)
    lines = [f"{key} = {item}" for key, item in options.items()]
    binary = draw(_BINARIES)
    if binary:
        lines.append(binary)
    kind = f'runtime_type = "{draw(_TYPES)}"'
    if draw(st.booleans()):
        inline = ", ".join(lines)
        return [f"[{prefix}.{name}]  # {name}\n{kind}\noptions = {{ {inline} }}\n"]
    if draw(st.booleans()):
        dotted = "".join(f"options.{line}\n" for line in lines)
        return [f"[{prefix}.{name}]\n{kind}\n{dotted}"]
    body = "".join(f"  {line}\n" for line in lines)
    return [f"[{prefix}.{name}]\n{kind}\n", f"  [{prefix}.{name}.options]\n{body}"]


@st.composite
def roots(draw: st.DrawFn, versions: tuple[int, ...]) -> bytes:
    version = draw(st.sampled_from(versions))
    cri = draw(st.sampled_from([f'plugins."{CRI[version]}"', f"plugins.'{CRI[version]}'"]))
    names = draw(
        st.lists(st.sampled_from(["runc", "crun", "kata", "nvidia", "nvidia-cdi"]), unique=True)
    )
    sections = [
        f'[{cri}.cni]\n  bin_dir = "/opt/cni/bin" # cni\n',
        "[grpc]\nuid = 0\n",
        "# nothing\n",
    ]
    for name in names:
        sections += draw(handlers(f"{cri}.containerd.runtimes", name))
    if draw(st.booleans()):
        default = draw(
            st.sampled_from(["", "snapshotter = 'overlayfs'\n", *map(named, [*names, "runc"])])
        )
        sections.append(f"[{cri}.containerd]\n{default}\n")
    sections = draw(st.permutations(sections))
    gap = draw(st.sampled_from(["", "\n", "\n# between\n"]))
    head = draw(st.sampled_from(["", "## template: jinja\n", "\n", 'root = "/r"\n']))
    text = head + f"version = {version}\n" * (version > 1) + gap.join(sections)
    text = draw(
        st.sampled_from(
            [text, text.removesuffix("\n"), text.replace("\n", "\r\n"), "\ufeff" + text]
        )
    )
    return text.encode()


def named(handler: str) -> str:
    return f'default_runtime_name = "{handler}"\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Files, and the binary that is there."""

    files: pure_plan.Files
    ask: pure_plan.Ask | None


@st.composite
def machines(draw: st.DrawFn) -> Node:
    ask = draw(st.sampled_from([None, modern]))
    if draw(st.integers(0, 12)) == 0:
        return Node(
            files=draw(
                st.sampled_from([{}, {pure_plan.CONFIG: b""}, {pure_plan.CONFIG: b"# only\n"}])
            ),
            ask=ask,
        )
    versions = (1, 2, 3, 4) if ask is None else (2, 3)
    return Node(files={pure_plan.CONFIG: draw(roots(versions))}, ask=ask)


WISHES: Final = st.builds(
    pure_plan.desired,
    default=st.sampled_from(["nvidia", None]),
    enable_cdi=st.sampled_from([True, None]),
    annotations=st.sampled_from([(), ("cdi.k8s.io*",)]),
    systemd_cgroup=st.booleans(),
)


def flat(content: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(content, dict):
        for name, below in content.items():
            yield from flat(below, (*key, name))
    else:
        yield key, content


def foreign(data: bytes | None) -> dict[Key, Any]:
    """Return what of a file is not ours to change."""
    kept = {}
    for key, item in flat(toml_editor.tree(data or b"", "x")):
        inside = key[2:] if key[:1] == ("plugins",) and key[1] in CRI.values() else ()
        ours = (
            key == ("imports",)
            or inside in {("enable_cdi",), ("containerd", "default_runtime_name")}
            or (inside[:2] == ("containerd", "runtimes") and inside[2] in OURS)
        )
        if not ours:
            kept[key] = item
    return kept


# --- laws -----------------------------------------------------------------------------------------


@LIMITS
@given(WISHES, machines())
def test_idempotent(wish: Any, node: Node) -> None:
    found = pure_plan.plan(wish, node.files, node.ask)
    after = pure_plan.after(node.files, found)
    assert pure_plan.plan(wish, after, node.ask, pure_plan.ownership(found)).changes == ()
    if wish.default is None or node.ask is not None:
        # The files alone say the same. In place, only the record knows which default ours replaced.
        assert pure_plan.plan(wish, after, node.ask).changes == ()


@LIMITS
@given(WISHES, machines())
def test_reversible(wish: Any, node: Node) -> None:
    found = pure_plan.plan(wish, node.files, node.ask)
    after = pure_plan.after(node.files, found)
    back = pure_plan.removal(wish, after, pure_plan.ownership(found))
    assert pure_plan.after(after, back) == dict(node.files)
    assert back.stayed == ()


@LIMITS
@given(WISHES, machines())
def test_reversible_without_the_original_bytes(wish: Any, node: Node) -> None:
    """The edits alone lead back to what the files said, whatever was added to them since."""
    found = pure_plan.plan(wish, node.files, node.ask)
    after = {
        path: data + b"\n# seen\n" for path, data in pure_plan.after(node.files, found).items()
    }
    back = pure_plan.removal(wish, after, pure_plan.ownership(found))
    left = pure_plan.after(after, back)
    assert {path: solid(data) for path, data in left.items() if solid(data)} == {
        path: solid(data) for path, data in node.files.items() if solid(data)
    }
    assert back.stayed == ()


def solid(data: bytes) -> dict[Key, Any]:
    return dict(flat(toml_editor.tree(data, "x")))


@LIMITS
@given(WISHES, machines())
def test_polite(wish: Any, node: Node) -> None:
    found = pure_plan.plan(wish, node.files, node.ask)
    after = pure_plan.after(node.files, found)
    assert set(after) <= {*node.files, pure_plan.CONFIG, pure_plan.DROP_IN}
    before = foreign(node.files.get(pure_plan.CONFIG))
    kept = foreign(after.get(pure_plan.CONFIG))
    # A file that said nothing gets a version; one without handlers gets the built-in runc.
    added = {key for key in kept if key not in before}
    assert {key: kept.get(key) for key in before} == before
    assert all(
        key == ("version",) or key[2:5] == ("containerd", "runtimes", "runc") for key in added
    )
    # The drop-in holds nothing but ours.
    assert foreign(after.get(pure_plan.DROP_IN)).keys() <= {("version",)}


FOREIGN: Final[dict[str, Callable[[bytes], bytes]]] = {
    "a table": lambda data: data + b"\n[foreign]\nx = 1\n",
    "a handler": lambda data: data + b'\n[plugins.other.runtimes.runsc]\nruntime_type = "x"\n',
    "a comment": lambda data: data + b"\n# mine\n",
}


@LIMITS
@given(WISHES, machines(), st.sampled_from(sorted(FOREIGN)))
def test_humble(wish: Any, node: Node, edit: str) -> None:
    """Another's addition to a file after ours survives our removal, and is all that is there."""
    found = pure_plan.plan(wish, node.files, node.ask)
    after = pure_plan.after(node.files, found)
    edited = {**after, pure_plan.CONFIG: FOREIGN[edit](after.get(pure_plan.CONFIG, b""))}
    left = pure_plan.after(edited, pure_plan.removal(wish, edited, pure_plan.ownership(found)))
    wanted = solid(FOREIGN[edit](node.files.get(pure_plan.CONFIG, b"")))
    kept = solid(left.get(pure_plan.CONFIG, b""))
    if pure_plan.CONFIG not in node.files or not solid(node.files[pure_plan.CONFIG]):
        kept.pop(("version",), None)  # What is added to a file of ours may need its version.
    assert kept == wanted
    assert pure_plan.DROP_IN not in left


# --- cases ----------------------------------------------------------------------------------------

V2: Final = f'plugins."{CRI[2]}"'
ROOT: Final = (
    f'version = 2\n[{V2}.containerd]\ndefault_runtime_name = "crun"\n'
    f'[{V2}.containerd.runtimes.crun]\nruntime_type = "io.containerd.runc.v2"\n'
    f'[{V2}.containerd.runtimes.crun.options]\nBinaryName = "/usr/bin/crun"\n'
).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody changed in a file of ours, and what our removal says stayed."""

    find: bytes
    put: bytes
    stayed: tuple[str, ...]


DEFAULT: Final = f"{V2}.containerd.default_runtime_name"
NVIDIA: Final = f"{V2}.containerd.runtimes.nvidia"
CHANGES: Final = {
    "another default": Change(
        find=b'default_runtime_name = "nvidia"',
        put=b'default_runtime_name = "kata"',
        stayed=(f"{{path}}: {DEFAULT} = 'kata'",),
    ),
    "an option of our handler": Change(
        find=b'BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"',
        put=b'BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"\nRoot = "/r"',
        stayed=(f"{{path}}: {NVIDIA}.options.Root = '/r'",),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_somebody_changed_of_ours_stays_and_is_named(change: Change, way: str) -> None:
    files = {pure_plan.CONFIG: ROOT}
    found = pure_plan.plan(pure_plan.desired(), files, WAYS[way])
    path = pure_plan.DROP_IN if WAYS[way] else pure_plan.CONFIG
    after = pure_plan.after(files, found)
    assert after[path].count(change.find) == 1
    edited = {**after, path: after[path].replace(change.find, change.put)}
    back = pure_plan.removal(pure_plan.desired(), edited, pure_plan.ownership(found))
    named = [line for line in back.stayed if "required by other keys" not in line]
    assert tuple(named) == tuple(line.format(path=path) for line in change.stayed)
    left = pure_plan.after(edited, back)
    assert change.put.splitlines()[-1] in left[path]
    assert b"nvidia-legacy" not in left[path]


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_gone_is_no_work_for_a_removal(way: str) -> None:
    found = pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, WAYS[way])
    assert pure_plan.removal(pure_plan.desired(), {}, pure_plan.ownership(found)) == ConfigPlan()


def test_a_file_that_is_as_it_was_is_no_work_for_a_removal() -> None:
    found = pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: ROOT})
    assert (
        pure_plan.removal(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, pure_plan.ownership(found))
        == ConfigPlan()
    )


def test_what_we_wrote_before_counts_as_ours_too() -> None:
    """After a crash between the record and the write, the file may be of either writing."""
    owned = Ownership(
        path=pure_plan.CONFIG, original=b"a = 1\n", written=(sha(b"new"), sha(ROOT)), edits=()
    )
    back = pure_plan.removal(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, (owned,))
    assert back.changes == (FileChange(path=pure_plan.CONFIG, before=ROOT, after=b"a = 1\n"),)


def sha(data: bytes) -> str:
    owned = pure_plan.ownership(
        ConfigPlan(changes=(FileChange(path="x", before=None, after=data),))
    )
    return owned[0].written[0]


def test_the_drop_in_follows_the_root_when_its_options_change() -> None:
    files = {pure_plan.CONFIG: ROOT}
    first = pure_plan.plan(pure_plan.desired(), files, modern)
    changed = {**pure_plan.after(files, first)}
    changed[pure_plan.CONFIG] = (
        changed[pure_plan.CONFIG]
        .replace(b"/usr/bin/crun", b"/c")
        .replace(b"BinaryName", b"SystemdCgroup = true\nBinaryName")
    )
    second = pure_plan.plan(pure_plan.desired(), changed, modern, pure_plan.ownership(first))
    [change] = second.changes
    assert change.path == pure_plan.DROP_IN
    assert (change.after or b"").count(b"SystemdCgroup = true") == len(OURS)


def test_a_drop_in_is_removed_with_its_import() -> None:
    files = {pure_plan.CONFIG: ROOT}
    found = pure_plan.plan(pure_plan.desired(), files, modern)
    assert [(change.path, change.action) for change in found.changes] == [
        (pure_plan.DROP_IN, "create"),
        (pure_plan.CONFIG, "modify"),
    ]
    back = pure_plan.removal(
        pure_plan.desired(), pure_plan.after(files, found), pure_plan.ownership(found)
    )
    # The import goes before the file that it names.
    assert [(change.path, change.action) for change in back.changes] == [
        (pure_plan.CONFIG, "modify"),
        (pure_plan.DROP_IN, "delete"),
    ]


IMPORTS: Final = {
    "none": ("", {}, ["/etc/containerd/conf.d/*.toml"]),
    "others": ('imports = ["/o/*.toml"]\n', {}, ["/o/*.toml", "/etc/containerd/conf.d/*.toml"]),
    "ours": ('imports = ["/etc/containerd/conf.d/*.toml"]\n', {}, None),
    "ours by name": ('imports = ["/etc/containerd/conf.d/99-nvidia.toml"]\n', {}, None),
    "files asleep beside ours": (
        "",
        {"/etc/containerd/conf.d/10-old.toml": b"version = 2\n"},
        ["/etc/containerd/conf.d/99-nvidia*.toml"],
    ),
}


@pytest.mark.parametrize(("line", "beside", "expected"), IMPORTS.values(), ids=IMPORTS)
def test_the_import_wakes_no_other_file(
    line: str, beside: pure_plan.Files, expected: list[str] | None
) -> None:
    files = {pure_plan.CONFIG: line.encode() + ROOT, **beside}
    found = pure_plan.plan(pure_plan.desired(), files, modern)
    roots = [change.after or b"" for change in found.changes if change.path == pure_plan.CONFIG]
    if expected is None:
        assert roots == []
    else:
        assert [tomllib.loads(root.decode())["imports"] for root in roots] == [expected]


def lying(change: dict[str, Any]) -> pure_plan.Ask:
    """Return the model, but for one thing that it says of a candidate."""

    def ask(question: BinaryQuery) -> BinaryResult:
        answer = modern(question)
        if question.name != "candidate":
            return answer
        content = deep(tomllib.loads(answer.out), change)
        document = toml_editor.put(toml_editor.parse(b"", "dump"), ("all",), content)
        text = document.encode().decode().replace("[all]\n", "").replace("[all.", "[")
        return BinaryResult(code=0, out=text, err="")

    return ask


CONTAINERD: Final = ("plugins", CRI[3], "containerd")


def nested(key: Key, item: Any) -> dict[str, Any]:
    for part in reversed(key):
        item = {part: item}
    content: dict[str, Any] = item
    return content


LIES: Final = {
    "something else changes": (
        nested(("grpc", "uid"), 7),
        "grpc.uid would change from nothing to 7",
    ),
    "another default": (
        nested((*CONTAINERD, "default_runtime_name"), "runc"),
        "the default handler would be 'runc', not nvidia",
    ),
    "no handler": (
        nested((*CONTAINERD, "runtimes", "nvidia-cdi"), 0),
        "the handler nvidia-cdi would not be in effect",
    ),
    "another binary": (
        nested((*CONTAINERD, "runtimes", "nvidia", "options", "BinaryName"), "/x"),
        (
            "the handler nvidia would run {BinaryName: '/x'}, not"
            " /usr/local/nvidia/toolkit/nvidia-container-runtime"
        ),
    ),
    "no type": (
        nested((*CONTAINERD, "runtimes", "nvidia", "runtime_type"), ""),
        "the handler nvidia would have no runtime_type",
    ),
    "a handler of others": (
        nested((*CONTAINERD, "runtimes", "crun", "options", "BinaryName"), "/x"),
        f'plugins."{CRI[3]}".containerd.runtimes.crun.options.BinaryName would change from',
    ),
}


@pytest.mark.parametrize(("change", "message"), LIES.values(), ids=LIES)
def test_a_candidate_with_another_effect_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, lying(change))
    assert str(caught.value).startswith(f"{pure_plan.CONFIG}: the change is refused: {message}")
    assert (
        caught.value.hint
        == "nothing was written; check whether a file that is loaded later overrides these keys,"
        " otherwise please report this"
    )


def test_a_refusal_names_only_the_first_few() -> None:
    many = {f"key{i}": i for i in range(1, 10)}
    with pytest.raises(ConfigError, match=r"key6 would change from nothing to 6; and 3 more$"):
        pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, lying(many))


def test_a_candidate_that_does_not_load_is_refused_with_the_binary_s_words() -> None:
    def ask(question: BinaryQuery) -> BinaryResult:
        if question.name == "candidate":
            return BinaryResult(code=1, out="", err="containerd: drop-in config version 4 higher\n")
        return modern(question)

    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, ask)
    assert (
        str(caught.value)
        == f"{pure_plan.CONFIG}: the change is refused: /usr/bin/containerd does not load the"
        " change:"
        " drop-in config version 4 higher"
    )


def test_a_removal_that_leaves_a_default_without_a_handler_is_refused() -> None:
    """Somebody removed the handler that was the default before us, so its name cannot come back."""
    files = {pure_plan.CONFIG: ROOT}
    found = pure_plan.plan(pure_plan.desired(drop_in=""), files, modern)
    after = pure_plan.after(files, found)
    start = after[pure_plan.CONFIG].index(f"[{V2}.containerd.runtimes.crun]".encode())
    end = after[pure_plan.CONFIG].index(f"[{V2}.containerd.runtimes.nvidia]".encode())
    edited = {pure_plan.CONFIG: after[pure_plan.CONFIG][:start] + after[pure_plan.CONFIG][end:]}
    with pytest.raises(ConfigError, match="the default handler crun would not exist"):
        pure_plan.removal(
            pure_plan.desired(drop_in=""), edited, pure_plan.ownership(found), with_handlers
        )


def with_handlers(question: BinaryQuery) -> BinaryResult:
    """Answer as the model does, with a table of handlers in any case, as a real dump has."""
    answer = modern(question)
    key = f'plugins."{CRI[3]}".containerd.runtimes.runc'
    return BinaryResult(code=0, out=f'{answer.out}\n[{key}]\nruntime_type = "x"\n', err="")


def test_plan_and_trial_agree_about_what_is_asked() -> None:
    """The candidate that is judged is the plan, byte for byte but for the names of the imports."""
    seen = pure_plan.observe(pure_plan.desired(), {pure_plan.CONFIG: ROOT}, modern)
    found = planner.plan(pure_plan.ADAPTER, pure_plan.desired(), seen)
    question = planner.candidate_query(pure_plan.ADAPTER, pure_plan.desired(), seen, found)
    assert question is not None
    after = {change.path: change.after or b"" for change in found.changes}
    assert question.names == (pure_plan.CONFIG, pure_plan.DROP_IN)
    assert question.files[0] == after[pure_plan.CONFIG].replace(
        b"/etc/containerd/conf.d/*.toml", token(1).encode()
    )
    assert question.files[1] == after[pure_plan.DROP_IN]
