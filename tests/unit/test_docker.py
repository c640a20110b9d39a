"""Docker's dialect without a dockerd: what is written, refused, read on the way, and reverted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from runtimes import edits, planner
from runtimes.adapter import Adapter
from runtimes.docker import ADAPTER as docker
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.model import (
    BinaryResult,
    ConfigPlan,
    Desired,
    Handler,
    Observation,
    Origin,
    Ownership,
    Request,
    RuntimeName,
    fingerprint,
    token,
    without_empty_tables,
)
from tests.support import nodes, pure_plan

ADAPTER: Final[Adapter] = docker
CONFIG: Final = "/etc/docker/daemon.json"
CORPUS: Final = nodes.CHECKOUT.parent / "shared" / "corpus" / "docker"
CASES: Final = sorted(path.name for path in CORPUS.glob("*.json")) or ["absent"]
NAMES: Final = frozenset(handler.name for handler in pure_plan.HANDLERS)
OURS: Final = {handler.name: {"path": handler.binary, "args": []} for handler in pure_plan.HANDLERS}
LIMITS: Final = settings(deadline=None, max_examples=60)
_WISH: Final = Desired(
    runtime=RuntimeName.DOCKER,
    config=CONFIG,
    drop_in="",
    handlers=pure_plan.HANDLERS,
    default="nvidia",
)
RENAMED: Final = (Handler(name="gpu", binary=pure_plan.HANDLERS[0].binary), *pure_plan.HANDLERS[1:])


def desired(**changed: Any) -> Desired:
    return replace(_WISH, **changed)


def observe(
    data: bytes | None,
    owned: tuple[Ownership, ...] = (),
    argv: tuple[str, ...] = (),
    binary: str | None = "/usr/bin/dockerd",
    wish: Desired = _WISH,
) -> Observation:
    """Look at what the adapter wants to have looked at, among one file."""
    seen = Observation(binary=binary, argv=argv, owned=owned)
    look = ADAPTER.required_files(wish, seen)
    assert (look.files, look.globs) == ((CONFIG,), ())
    seen = replace(seen, files={CONFIG: data})
    assert not ADAPTER.required_files(wish, seen).files
    assert not ADAPTER.queries(wish, seen)
    return seen


def plan(wish: Desired, data: bytes | None, owned: tuple[Ownership, ...] = ()) -> ConfigPlan:
    return planner.plan(ADAPTER, wish, observe(data, owned, wish=wish))


def after(data: bytes | None, found: ConfigPlan) -> bytes | None:
    """Return the file as a plan leaves it."""
    for change in found.changes:
        assert (change.path, change.before) == (CONFIG, data)
        data = change.after
    return data


def removal(data: bytes | None, owned: tuple[Ownership, ...]) -> ConfigPlan:
    return planner.removal(ADAPTER, observe(data, owned))


def record(
    adapter: Adapter, found: ConfigPlan, owned: tuple[Ownership, ...] = ()
) -> tuple[Ownership, ...]:
    """Return what is owned once a plan is in effect, as the journal writes it down."""
    books = {each.path: each for each in owned}
    for change in found.changes:
        old = books.pop(change.path, None)
        original = change.before
        written = [fingerprint(change.after)]
        if change.reset_content is not None:
            written.append(fingerprint(change.reset_content))
        if old is not None:
            original = planner.without_us(adapter, old, change.before)[0]
            if fingerprint(change.before) in old.written:
                original = old.original
                written.append(fingerprint(change.before))
        books[change.path] = Ownership(
            path=change.path,
            original=original,
            written=tuple(written),
            edits=edits.merge(old.edits if old else (), change.edits),
        )
    return tuple(books.values())


def installed(wish: Desired, data: bytes | None) -> tuple[bytes | None, tuple[Ownership, ...]]:
    """Return the file and the record after a first run."""
    found = plan(wish, data)
    return after(data, found), record(ADAPTER, found)


def tree(data: bytes | None) -> dict[str, Any]:
    """Return the content, read by `json` alone."""
    content: dict[str, Any] = json.loads((data or b"").strip() or b"{}")
    return content


# --- what is written ------------------------------------------------------------------------------

NOTHING: Final[dict[str, bytes | None]] = {
    "absent": None,
    "no byte": b"",
    "a newline": b"\n",
    "an object": b"{}",
    "an object with a newline": b"{\n}\n",
}


@pytest.mark.parametrize("data", NOTHING.values(), ids=NOTHING)
def test_a_file_that_says_nothing_gets_our_keys_alone(data: bytes | None) -> None:
    result, _ = installed(desired(), data)
    assert tree(result) == {"runtimes": OURS, "default-runtime": "nvidia"}


LAYOUTS: Final = {
    "one line": (
        b'{ "live-restore": true }',
        b'{ "live-restore": true, "runtimes": { "nvidia": { "path": "/nv", "args": [] } } }',
    ),
    "one line, no gaps": (
        b'{"live-restore":true}\n',
        b'{"live-restore":true,"runtimes":{"nvidia":{"path":"/nv","args":[]}}}\n',
    ),
    "two blanks": (
        b'{\n  "live-restore": true\n}\n',
        (
            b'{\n  "live-restore": true,\n  "runtimes": {\n    "nvidia": {\n      "path": "/nv",\n'
            b'      "args": []\n    }\n  }\n}\n'
        ),
    ),
    "tabs": (
        b'{\n\t"runtimes": {\n\t\t"crun": {\n\t\t\t"path": "/c"\n\t\t}\n\t}\n}',
        (
            b'{\n\t"runtimes": {\n\t\t"crun": {\n\t\t\t"path": "/c"\n\t\t},\n\t\t"nvidia": {\n'
            b'\t\t\t"path": "/nv",\n\t\t\t"args": []\n\t\t}\n\t}\n}'
        ),
    ),
    "carriage returns": (
        b'{\r\n  "debug": false\r\n}\r\n',
        (
            b'{\r\n  "debug": false,\r\n  "runtimes": {\r\n    "nvidia": {\r\n      "path":'
            b' "/nv",\r\n      "args": []\r\n    }\r\n  }\r\n}\r\n'
        ),
    ),
}


@pytest.mark.parametrize(("before", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_file_s_own_layout_is_kept(before: bytes, expected: bytes) -> None:
    wish = desired(handlers=(Handler(name="nvidia", binary="/nv"),), default=None)
    result, owned = installed(wish, before)
    assert result == expected
    assert after(result, removal(result, owned)) == before


def test_cdi_joins_the_features_of_others() -> None:
    before = b'{"features": {"containerd-snapshotter": true, "cdi": false}, "debug": true}'
    result, owned = installed(desired(enable_cdi=True), before)
    assert tree(result)["features"] == {"containerd-snapshotter": True, "cdi": True}
    assert after(result, removal(result, owned)) == before


@pytest.mark.parametrize("enable_cdi", [None, False])
def test_cdi_is_left_alone_where_it_is_not_asked_for(enable_cdi: Literal[False] | None) -> None:
    before = b'{"features": {"cdi": false, "buildkit": true}}'
    result, _ = installed(desired(enable_cdi=enable_cdi), before)
    assert tree(result)["features"] == {"cdi": False, "buildkit": True}


def test_handlers_stand_in_the_order_of_the_wish() -> None:
    result, _ = installed(desired(), b'{"runtimes": {"crun": {"path": "/c"}}}')
    assert list(tree(result)["runtimes"]) == ["crun", "nvidia", "nvidia-cdi", "nvidia-legacy"]


# --- only our keys --------------------------------------------------------------------------------

_PLAIN: Final = st.one_of(
    st.booleans(), st.integers(-5, 5), st.none(), st.sampled_from(["", "50m", "ü", '"', "\\", "1"])
)
_VALUES: Final = st.recursive(
    _PLAIN,
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.dictionaries(st.sampled_from(["a", "b c", "ü"]), below, max_size=2),
    ),
    max_leaves=4,
)
_RUNTIMES: Final = st.dictionaries(
    st.sampled_from(["runc", "crun", "kata", "nvidia", "nvidia-cdi", "nvidia-other"]),
    st.sampled_from(
        [
            {"path": "/usr/bin/x"},
            {"path": "x", "runtimeArgs": ["--debug"]},
            {
                "runtimeType": "io.containerd.runsc.v1",
                "options": {"TypeUrl": "x", "ConfigPath": "/y"},
            },
            {},
        ]
    ),
    max_size=4,
)
_FEATURES: Final = st.dictionaries(
    st.sampled_from(["cdi", "buildkit", "containerd-snapshotter"]), st.booleans(), max_size=3
)
_INDENTS: Final[list[int | str | None]] = [None, 1, 2, 4, "\t"]


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    members: dict[str, Any] = draw(
        st.dictionaries(
            st.sampled_from(["log-opts", "debug", "hosts", "ü", "cdi"]), _VALUES, max_size=4
        )
    )
    if draw(st.booleans()):
        members["runtimes"] = draw(_RUNTIMES)
    if draw(st.booleans()):
        members["features"] = draw(_FEATURES)
    if draw(st.booleans()):
        members["default-runtime"] = draw(
            st.sampled_from(["runc", "crun", "nvidia", "io.containerd.x"])
        )
    return {name: members[name] for name in draw(st.permutations(sorted(members)))}


@st.composite
def files(draw: st.DrawFn) -> bytes | None:
    """Return a daemon.json in some layout, or none."""
    if draw(st.integers(0, 12)) == 0:
        return draw(st.sampled_from(list(NOTHING.values())))
    text = json.dumps(
        draw(trees()),
        indent=draw(st.sampled_from(_INDENTS)),
        separators=draw(st.sampled_from([None, (",", ":"), (", ", " : ")])),
        ensure_ascii=draw(st.booleans()),
    )
    text = draw(st.sampled_from(["", "\n", " "])) + text + draw(st.sampled_from(["", "\n", "\n\n"]))
    text = draw(st.sampled_from([text, text.replace("\n", "\r\n")]))
    return text.encode()


WISHES: Final = st.builds(
    desired, default=st.sampled_from(["nvidia", None]), enable_cdi=st.sampled_from([True, None])
)


def foreign(content: dict[str, Any], wish: Desired) -> str:
    """Return, in order, what is not ours; of objects that hold our keys too, the remainder."""
    kept = dict(content)
    mine = {"runtimes": wish.names, "features": {"cdi"} if wish.enable_cdi else frozenset()}
    for name, keys in mine.items():
        rest = {key: item for key, item in kept.get(name, {}).items() if key not in keys}
        if rest or not keys:
            kept |= {name: rest} if name in kept else {}
        else:
            kept.pop(name, None)
    if wish.default:
        kept.pop("default-runtime", None)
    # As text, true is not 1; and the order of what is left counts.
    return json.dumps(kept)


def check_only_our_keys_change(edit: Callable[[Desired, bytes | None], bytes | None]) -> None:
    """Hold an edit against generated files: what is wished is there, and all else as it was."""

    @settings(
        LIMITS, database=None, phases=[Phase.generate], report_multiple_bugs=False, derandomize=True
    )
    @given(WISHES, files())
    def holds(wish: Desired, data: bytes | None) -> None:
        if wish.default is None and tree(data).get("default-runtime") in wish.names:
            # A default with our name that was not requested: see the cases below.
            return
        result = tree(edit(wish, data))
        assert foreign(result, wish) == foreign(tree(data), wish)
        assert {name: result["runtimes"].get(name) for name in wish.names} == OURS
        assert not wish.default or result["default-runtime"] == wish.default
        assert not wish.enable_cdi or result["features"]["cdi"] is True

    holds()


def test_only_our_keys_change() -> None:
    check_only_our_keys_change(lambda wish, data: installed(wish, data)[0])


def _forgets_features(wish: Desired, data: bytes | None) -> bytes | None:
    """Do as the peer does: other features are dropped when CDI is enabled."""
    content = tree(installed(wish, data)[0])
    return json.dumps(content | ({"features": {"cdi": True}} if wish.enable_cdi else {})).encode()


def _forgets_runtimes(wish: Desired, data: bytes | None) -> bytes | None:
    return json.dumps({**tree(installed(wish, data)[0]), "runtimes": OURS}).encode()


def _sorts(wish: Desired, data: bytes | None) -> bytes | None:
    return json.dumps(tree(installed(wish, data)[0]), sort_keys=True).encode()


def _reads_true_as_one(wish: Desired, data: bytes | None) -> bytes | None:
    return (installed(wish, data)[0] or b"").replace(b"true", b"1")


BROKEN: Final = {
    "forgets other features": _forgets_features,
    "forgets other runtimes": _forgets_runtimes,
    "sorts": _sorts,
    "true is one": _reads_true_as_one,
}


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN)
def test_an_edit_that_changes_more_is_noticed(
    edit: Callable[[Desired, bytes | None], bytes | None],
) -> None:
    with pytest.raises(AssertionError):
        check_only_our_keys_change(edit)


# --- laws -----------------------------------------------------------------------------------------


@LIMITS
@given(WISHES, files())
def test_idempotent(wish: Desired, data: bytes | None) -> None:
    result, owned = installed(wish, data)
    assert plan(wish, result, owned).is_noop
    assert plan(wish, result).is_noop


@LIMITS
@given(WISHES, files())
def test_reversible(wish: Desired, data: bytes | None) -> None:
    result, owned = installed(wish, data)
    back = removal(result, owned)
    assert after(result, back) == data
    assert back.stayed == ()


def solid(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without the objects that ours left empty."""
    return {
        name: item for name, item in content.items() if name not in {"runtimes", "features"} or item
    }


@LIMITS
@given(WISHES, files())
def test_humble(wish: Desired, data: bytes | None) -> None:
    """What somebody adds after us is all that is left of what was not there before us."""
    result, owned = installed(wish, data)
    content = tree(result)
    content["foreign"] = {"x": 1}
    content["runtimes"]["theirs"] = {"path": "/t"}
    edited = json.dumps(content, indent=3).encode()
    back = removal(edited, owned)
    assert back.stayed == ()
    before = tree(data)
    wanted = before | {"foreign": {"x": 1}}
    wanted["runtimes"] = before.get("runtimes", {}) | {"theirs": {"path": "/t"}}
    assert solid(tree(after(edited, back))) == solid(wanted)


@LIMITS
@given(files(), st.lists(WISHES, min_size=2, max_size=4))
def test_reversible_after_any_wishes(data: bytes | None, wishes: list[Desired]) -> None:
    result: bytes | None = data
    owned: tuple[Ownership, ...] = ()
    for wish in wishes:
        found = plan(wish, result, owned)
        result, owned = after(result, found), record(ADAPTER, found, owned)
    assert after(result, removal(result, owned)) == data


# --- what is refused ------------------------------------------------------------------------------

WRONG: Final = {
    "runtimes are a list": (
        b'{"runtimes": ["nvidia"]}',
        'its `runtimes` is not an object but ["nvidia"]',
        "dockerd would refuse it too; repair or remove that key",
    ),
    "features are a list": (
        b'{"features": ["cdi"]}',
        'its `features` is not an object but ["cdi"]',
        "dockerd would refuse it too; repair or remove that key",
    ),
    "a runtime is a text": (
        b'{"runtimes": {"crun": {}, "nvidia": "/usr/bin/x"}}',
        'its runtime nvidia is not an object but "/usr/bin/x"',
        "dockerd would refuse it too; repair or remove that entry",
    ),
}


@pytest.mark.parametrize(("data", "why", "hint"), WRONG.values(), ids=WRONG)
def test_a_wrong_type_is_refused_with_its_place(data: bytes, why: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), data)
    assert str(caught.value) == f"{CONFIG}: {why}"
    assert caught.value.hint == hint


@pytest.mark.parametrize("default", ["nvidia", None])
@pytest.mark.parametrize("wrong", ["[]", "{}", "5", "true"])
def test_a_default_of_a_wrong_type_is_refused(wrong: str, default: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(default=default), f'{{"default-runtime": {wrong}}}'.encode())
    assert str(caught.value) == f"{CONFIG}: its `default-runtime` is not a string but {wrong}"
    assert caught.value.hint == "dockerd would refuse it too; repair or remove that key"


PLACES: Final = {
    # Python before 3.13 points at the bracket instead.
    "a comma too much": (b'{\n  "debug": true,\n}\n', 2, 16),
    "a comma too much, in an array": (b'{"hosts": [\n"fd://" ,\n\n]}', 2, 9),
    "cut off": (b'{\n  "debug": true\n', 3, 1),
    "a key twice": (b'{\n  "runtimes": {},\n  "runtimes": {}\n}', 3, 3),
    "no object": (b'\n "nvidia"', 2, 2),
    "a comment": (b"// docker\n{}", 1, 1),
    "no UTF-8": (b'{\n"a": "\xff"}', 2, 7),
}


@pytest.mark.parametrize(("data", "line", "column"), PLACES.values(), ids=PLACES)
def test_a_broken_file_is_refused_with_line_and_column(data: bytes, line: int, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(desired(), data)
    assert (caught.value.path, caught.value.line, caught.value.column) == (CONFIG, line, column)
    assert caught.value.hint


FLAGS: Final = {
    "a runtime": (("--add-runtime", "crun=/usr/bin/crun"), "--add-runtime", "runtimes"),
    "a runtime, joined": (("--add-runtime=crun=/usr/bin/crun",), "--add-runtime", "runtimes"),
    "a default": (("--default-runtime", "crun"), "--default-runtime", "default-runtime"),
    "a default, joined": (("--default-runtime=crun",), "--default-runtime", "default-runtime"),
}


@pytest.mark.parametrize(("words", "flag", "key"), FLAGS.values(), ids=FLAGS)
def test_a_flag_that_clashes_with_the_file_is_refused(
    words: tuple[str, ...], flag: str, key: str
) -> None:
    seen = observe(b"{}", argv=("/usr/bin/dockerd", "-H", "fd://", *words, "--debug"))
    with pytest.raises(UnsupportedSetup) as caught:
        planner.plan(ADAPTER, desired(), seen)
    assert (
        str(caught.value)
        == f"dockerd runs with {flag}, so it would not start again with `{key}` in its"
        " configuration file as well"
    )
    assert (
        caught.value.hint
        == f"remove {flag} from the unit's command line and set `{key}` in the file"
    )


NULLS: Final = (
    b"null",
    b" null\n",
    b'{"runtimes": null}',
    b'{"default-runtime": null, "debug": true}\n',
    b'{\n  "features": null,\n  "runtimes": null,\n  "default-runtime": null\n}\n',
    b'{"runtimes": {"mine": null, "nvidia": null}}',
)


@pytest.mark.parametrize("data", NULLS)
@pytest.mark.parametrize("cdi", [True, None])
@pytest.mark.parametrize("default", ["nvidia", None])
def test_null_is_taken_as_absent(data: bytes, *, cdi: bool | None, default: str | None) -> None:
    wish = desired(enable_cdi=cdi, default=default)
    found = planner.plan(ADAPTER, wish, observe(data, wish=wish))
    (change,) = found.changes
    assert change.after is not None
    tree = json.loads(change.after)
    assert set(tree["runtimes"]) >= wish.names
    assert (tree.get("default-runtime"), (tree.get("features") or {}).get("cdi")) == (default, cdi)
    assert found.low_level == ("runc",)
    owned = record(ADAPTER, found)
    # Again: there is nothing to do, and the way back is to the same bytes.
    assert planner.plan(ADAPTER, wish, observe(change.after, owned=owned, wish=wish)).is_noop
    (back,) = planner.removal(ADAPTER, observe(change.after, owned=owned, wish=wish)).changes
    assert back.after == data
    # Somebody edited it since: only what is ours goes.
    edited = change.after.rstrip()[:-1] + b', "mtu": 1400}\n'
    (back,) = planner.removal(ADAPTER, observe(edited, owned=owned, wish=wish)).changes
    assert without_empty_tables(json.loads(back.after or b"")) == {
        **(json.loads(data) or {}),
        "mtu": 1400,
    }


@pytest.mark.parametrize(
    ("entry", "is_sandbox"),
    [
        ('{"path": "/usr/local/bin/runsc"}', True),
        ('{"runtimeType": "io.containerd.kata.v2"}', True),
        ('{"path": "/usr/bin/crun"}', False),
        ("null", False),
    ],
)
def test_a_default_that_isolates_containers_is_not_replaced_without_a_word(
    entry: str, *, is_sandbox: bool
) -> None:
    data = f'{{"default-runtime": "x", "runtimes": {{"x": {entry}}}}}'.encode()
    found = planner.plan(ADAPTER, desired(), observe(data))
    assert len(found.warnings) == is_sandbox
    assert all("the default handler x isolates pods" in warning for warning in found.warnings)
    wish = desired(default=None)
    assert planner.plan(ADAPTER, wish, observe(data, wish=wish)).warnings == ()


@pytest.mark.parametrize("data", NULLS)
def test_null_is_no_handler(data: bytes) -> None:
    seen = observe(data)
    assert docker.defined(desired(), seen.files) == frozenset()
    assert docker.effective(desired(), seen).default == "runc"
    assert docker.programs(desired(), seen) == {}


def test_a_runtime_that_is_null_is_refused_with_a_dockerd_that_does_not_start_with_it() -> None:
    seen = replace(observe(b'{"runtimes": {"mine": null}}'), binary="/usr/bin/dockerd")
    planner.check(ADAPTER, desired(), seen, _OLD)
    valid = BinaryResult(code=0, out="configuration OK", err="")
    with pytest.raises(ConfigError) as caught:
        planner.check(ADAPTER, desired(), seen, valid)
    assert caught.value.why == "as it is, it keeps dockerd from starting: its runtime mine is null"
    planner.check_removal(ADAPTER, desired(), seen, valid)


CLASHES: Final = {
    "long": (
        b'{"default-shm-size": "1G"}',
        ("--default-shm-size=1G",),
        "`default-shm-size` (also --default-shm-size)",
    ),
    "two words": (b'{"mtu": 1400}', ("--mtu", "1400"), "`mtu` (also --mtu)"),
    "short": (b'{"debug": false}', ("-D",), "`debug` (also -D)"),
    "hosts": (b'{"hosts": []}', ("-H", "fd://"), "`hosts` (also -H)"),
    "plural": (b'{"labels": []}', ("--label", "a=b", "--label", "c=d"), "`labels` (also --label)"),
    "irregular": (
        b'{"insecure-registries": []}',
        ("--insecure-registry=x",),
        "`insecure-registries` (also --insecure-registry)",
    ),
    "null": (b'{"mtu": null}', ("--mtu=1",), "`mtu` (also --mtu)"),
    "a proxy": (
        b'{"proxies": {"http-proxy": "x"}}',
        ("--http-proxy=y",),
        "`http-proxy` (also --http-proxy)",
    ),
    "two": (
        b'{"mtu": 1, "debug": true}',
        ("--mtu=1", "-D"),
        "`mtu` (also --mtu), `debug` (also -D)",
    ),
}
_OLD: Final = BinaryResult(
    code=125, out="", err="unknown flag: --validate\nSee 'dockerd --help'.\n"
)
_REFUSES: Final = BinaryResult(
    code=1, out="", err="the following directives are specified both as a flag\n"
)


@pytest.mark.parametrize(("data", "words", "said"), CLASHES.values(), ids=CLASHES)
@pytest.mark.parametrize("answer", [_OLD, _REFUSES, None], ids=["20.10", "newer", "no binary"])
def test_a_file_that_clashes_with_a_flag_as_it_is_is_named(
    data: bytes, words: tuple[str, ...], said: str, answer: BinaryResult | None
) -> None:
    seen = replace(
        observe(
            data, argv=("dockerd", "-H", "tcp://x" if b"hosts" not in data else "fd://", *words)
        ),
        binary="/usr/bin/dockerd" if answer else None,
    )

    def judged() -> None:
        planner.plan(ADAPTER, desired(), seen)
        if answer is not None:
            planner.check(ADAPTER, desired(), seen, answer)

    with pytest.raises(ConfigError) as caught:
        judged()
    assert (
        caught.value.why
        == "as it is, it keeps dockerd from starting: the running dockerd has options of it as"
        f" flags as well: {said}"
    )
    assert "please report" not in caught.value.hint


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"runtimes": {}}', ("--debug",)),
        (b'{"data-root": "/x"}', ("--default-shm-size=1G",)),
        (b'{"proxies": null, "l": 1}', ("--http-proxy=y",)),
    ],
)
def test_a_flag_for_what_the_file_does_not_set_is_no_clash(
    data: bytes, words: tuple[str, ...]
) -> None:
    seen = replace(observe(data, argv=("dockerd", *words)), binary="/usr/bin/dockerd")
    planner.check(ADAPTER, desired(), seen, _OLD)


def test_a_flag_for_a_key_that_is_not_set_is_no_obstacle() -> None:
    wish = desired(default=None)
    found = planner.plan(
        ADAPTER, wish, observe(b"{}", argv=("dockerd", "--default-runtime=crun"), wish=wish)
    )
    assert tree(after(b"{}", found)) == {"runtimes": OURS}


@pytest.mark.parametrize("word", ["--default-runtimes", "--add-runtimex=1", "--debug", "crun"])
def test_other_flags_do_not_clash(word: str) -> None:
    seen = observe(b"{}", argv=("dockerd", word))
    assert not planner.plan(ADAPTER, desired(), seen).is_noop


def test_the_program_s_own_name_is_no_flag() -> None:
    assert not planner.plan(ADAPTER, desired(), observe(b"{}", argv=("--add-runtime",))).is_noop


# --- the default ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b'{"default-runtime": "crun"}', b'{"debug": true}', None])
def test_a_default_that_is_wished_no_more_gives_way_to_the_one_before(
    before: bytes | None,
) -> None:
    result, owned = installed(desired(), before)
    found = plan(desired(default=None), result, owned)
    second = after(result, found)
    assert tree(second).get("default-runtime") == tree(before).get("default-runtime")
    assert tree(second)["runtimes"] == OURS
    owned = record(ADAPTER, found, owned)
    assert plan(desired(default=None), second, owned).is_noop
    assert after(second, removal(second, owned)) == before


def test_a_default_of_somebody_else_stays_where_ours_is_not_wished() -> None:
    result, owned = installed(desired(), b'{"default-runtime": "crun"}')
    edited = (result or b"").replace(b'"default-runtime": "nvidia"', b'"default-runtime": "kata"')
    assert tree(edited)["default-runtime"] == "kata"
    assert plan(desired(default=None), edited, owned).is_noop


def test_a_default_of_the_vendor_stays_where_ours_is_not_wished() -> None:
    before = b'{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/v"}}}'
    result, _ = installed(desired(default=None), before)
    assert tree(result)["default-runtime"] == "nvidia"


# --- a renamed handler ----------------------------------------------------------------------------


def test_a_renamed_handler_takes_the_old_name_with_it() -> None:
    before = b'{"default-runtime": "crun", "runtimes": {"crun": {"path": "/c"}}}'
    result, owned = installed(desired(), before)
    wish = desired(handlers=RENAMED, default="gpu")
    found = plan(wish, result, owned)
    second = after(result, found)
    assert list(tree(second)["runtimes"]) == ["crun", "nvidia-cdi", "nvidia-legacy", "gpu"]
    assert tree(second)["default-runtime"] == "gpu"
    owned = record(ADAPTER, found, owned)
    assert plan(wish, second, owned).is_noop
    assert after(second, removal(second, owned)) == before


def test_a_renamed_handler_gives_back_the_vendor_s() -> None:
    before = b'{"runtimes": {"nvidia": {"path": "/v", "runtimeArgs": []}}}'
    result, owned = installed(desired(default=None), before)
    found = plan(desired(handlers=RENAMED, default=None), result, owned)
    assert tree(after(result, found))["runtimes"]["nvidia"] == {"path": "/v", "runtimeArgs": []}


def test_a_renamed_handler_that_is_wished_as_default_no_more_leaves_no_dangling_default() -> None:
    result, owned = installed(desired(), b'{"default-runtime": "crun"}')
    found = plan(desired(handlers=RENAMED, default=None), result, owned)
    assert tree(after(result, found))["default-runtime"] == "crun"


def test_an_entry_of_somebody_under_our_former_name_stays() -> None:
    result, owned = installed(desired(), None)
    wish = desired(handlers=RENAMED, default="gpu")
    found = plan(wish, result, owned)
    second, owned = after(result, found), record(ADAPTER, found, owned)
    content = tree(second)
    content["runtimes"]["nvidia"] = {"path": "/theirs"}
    edited = json.dumps(content).encode()
    assert tree(after(edited, plan(wish, edited, owned)))["runtimes"]["nvidia"] == {
        "path": "/theirs"
    }


# --- the vendor's entry ---------------------------------------------------------------------------

VENDORS: Final = {
    "arguments of old": (
        b'{\n    "runtimes": {\n        "nvidia": {\n            "path":'
        b' "nvidia-container-runtime",\n            "runtimeArgs": []\n        }\n    },\n\n   '
        b' "default-runtime": "nvidia"\n}'
    ),
    "arguments": (
        b'{"runtimes":{"nvidia":{"path":"nvidia-container-runtime","runtimeArgs":["--debug"]}}}\n'
    ),
    "a shim": (
        b'{\n\t"runtimes": {\n\t\t"nvidia": { "runtimeType": "io.containerd.runc.v2",\n'
        b'\t\t  "options": { "BinaryName": "/v" } }\n\t}\n}\n'
    ),
    "empty": b'{"runtimes": {"nvidia": {}}}',
}


@pytest.mark.parametrize("before", VENDORS.values(), ids=VENDORS)
def test_the_vendor_s_entry_is_replaced_whole_and_given_back(before: bytes) -> None:
    result, owned = installed(desired(), before)
    assert tree(result) == tree(before) | {"runtimes": OURS, "default-runtime": "nvidia"}
    assert after(result, removal(result, owned)) == before
    # Where somebody edited the file since, the values come back, not the bytes.
    edited = (result or b"").rstrip()[:-1] + b', "debug": true}'
    back = removal(edited, owned)
    assert tree(after(edited, back)) == tree(before) | {"debug": True}
    assert back.stayed == ()


def test_an_entry_of_ours_that_somebody_changed_stays_and_is_named() -> None:
    result, owned = installed(desired(), b'{"debug": true}')
    edited = (result or b"").replace(pure_plan.HANDLERS[0].binary.encode() + b'"', b'/mine"')
    assert tree(edited)["runtimes"]["nvidia"]["path"] == "/mine"
    back = removal(edited, owned)
    assert back.stayed == (f"{CONFIG}: runtimes.nvidia (edited since)",)
    assert tree(after(edited, back)) == {
        "debug": True,
        "runtimes": {"nvidia": {"path": "/mine", "args": []}},
    }


# --- what is read on the way ----------------------------------------------------------------------

STONES: Final[dict[str, tuple[bytes | None, bytes | None, dict[str, Any] | None]]] = {
    "both keys go": (
        b'{"runtimes": {"nvidia": {}}, "default-runtime": "nvidia", "debug": true}',
        b'{"debug": true}',
        {"debug": True, "runtimes": {}, "default-runtime": "runc"},
    ),
    "the file goes": (
        b'{"runtimes": {"nvidia": {}}, "default-runtime": "nvidia"}',
        None,
        {"runtimes": {}, "default-runtime": "runc"},
    ),
    "the default goes": (
        b'{"runtimes": {"a": {}}, "default-runtime": "nvidia"}',
        b'{"runtimes": {"a": {}}}',
        {"runtimes": {"a": {}}, "default-runtime": "runc"},
    ),
    "the runtimes go": (
        b'{"runtimes": {"a": {}}, "default-runtime": "runc"}',
        b'{"default-runtime": "runc"}',
        {"default-runtime": "runc", "runtimes": {}},
    ),
    "a handler goes": (b'{"runtimes": {"a": {}, "b": {}}}', b'{"runtimes": {"a": {}}}', None),
    "the default changes": (
        b'{"default-runtime": "nvidia"}',
        b'{"default-runtime": "crun"}',
        None,
    ),
    "keys come": (b"{}", b'{"runtimes": {"a": {}}, "default-runtime": "a"}', None),
    "a file comes": (None, b'{"runtimes": {}}', None),
    "another key goes": (b'{"debug": true}', b"{}", None),
    "nothing there": (None, None, None),
}


@pytest.mark.parametrize(("before", "next_one", "expected"), STONES.values(), ids=STONES)
def test_a_stone_names_what_goes(
    before: bytes | None, next_one: bytes | None, expected: dict[str, Any] | None
) -> None:
    reset_content = docker.reset_content(CONFIG, before, next_one)
    assert (reset_content if reset_content is None else tree(reset_content)) == expected


def test_a_removal_has_a_stone_and_an_installation_has_none() -> None:
    before = b'{\n  "debug": true\n}\n'
    found = plan(desired(), before)
    assert found.reset_contents == ()
    result, owned = after(before, found), record(ADAPTER, found)
    [reset_content] = removal(result, owned).reset_contents
    assert reset_content.before == result
    assert reset_content.reset_content is None
    assert tree(reset_content.after) == {"debug": True, "runtimes": {}, "default-runtime": "runc"}


def test_a_default_that_goes_has_a_stone() -> None:
    result, owned = installed(desired(), None)
    [reset_content] = plan(desired(default=None), result, owned).reset_contents
    assert tree(reset_content.after) == {"runtimes": OURS, "default-runtime": "runc"}


# --- what the daemon says -------------------------------------------------------------------------

_FILE: Final[dict[str, bytes | None]] = {
    CONFIG: json.dumps({"runtimes": OURS | {"crun": {}}, "default-runtime": "nvidia"}).encode()
}


def info(*runtimes: str, default: str) -> str:
    names: dict[str, Any] = {name: {} for name in ("runc", "io.containerd.runc.v2", *runtimes)}
    return json.dumps({"Runtimes": names, "DefaultRuntime": default, "ServerVersion": "28.5.0"})


CONFIRMED: Final[dict[str, tuple[dict[str, bytes | None], str, list[str]]]] = {
    "taken up": (_FILE, info(*NAMES, default="nvidia"), []),
    "one is missing": (
        _FILE,
        info("nvidia", "nvidia-legacy", default="nvidia"),
        ["dockerd does not know the handler nvidia-cdi"],
    ),
    "nothing taken up": (
        _FILE,
        info(default="runc"),
        [
            "dockerd does not know the handler nvidia",
            "dockerd does not know the handler nvidia-cdi",
            "dockerd does not know the handler nvidia-legacy",
            "dockerd's default handler is runc, not nvidia",
        ],
    ),
    "still there": (
        {CONFIG: b'{"runtimes": {"nvidia": {}}}'},
        info(*NAMES, default="runc"),
        [
            "dockerd still knows the handler nvidia-cdi",
            "dockerd still knows the handler nvidia-legacy",
        ],
    ),
    "still the default": (
        {CONFIG: None},
        info(default="nvidia"),
        ["dockerd's default handler is nvidia, not runc"],
    ),
    "given back": ({CONFIG: b'{"default-runtime": "crun"}'}, info("crun", default="crun"), []),
    "no file": ({}, info("theirs", default="runc"), []),
}


@pytest.mark.parametrize(("there", "body", "expected"), CONFIRMED.values(), ids=CONFIRMED)
def test_the_daemon_s_word_is_held_against_the_file(
    there: dict[str, bytes | None], body: str, expected: list[str]
) -> None:
    assert list(docker.not_applied(desired(), there, body)) == expected


def test_our_handlers_are_found_in_a_file() -> None:
    assert docker.defined(desired(), _FILE) == NAMES
    assert docker.defined(desired(), {CONFIG: b'{"runtimes": {"nvidia-cdi": {}, "x": {}}}'}) == {
        "nvidia-cdi"
    }
    assert docker.defined(desired(), {CONFIG: None}) == frozenset()


BODIES: Final = [
    "",
    "<html>",
    "[]",
    "null",
    "{}",
    '{"Runtimes": null, "DefaultRuntime": "runc"}',
    "5",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body or "no byte")
def test_an_answer_that_cannot_be_read_confirms_nothing(body: str) -> None:
    [problem] = docker.not_applied(desired(), _FILE, body)
    assert problem.startswith("dockerd's answer cannot be read (")


LIST: Final = "/containers/json"
IDS: Final = ["a" * 64, "b" * 64, "c" * 64]


def listing() -> str:
    names = [["/cuda", "/other/alias"], ["/web"], [""]]
    return json.dumps([{"Id": key, "Names": name} for key, name in zip(IDS, names, strict=True)])


def detail(runtime: str) -> str:
    return json.dumps({"HostConfig": {"Runtime": runtime}})


def test_the_containers_are_asked_for_first_and_each_of_them_then() -> None:
    first = docker.usage(desired(), {})
    assert (first.requests, first.using) == ((Request(path=LIST),), ())
    answers = {LIST: listing()}
    second = docker.usage(desired(), answers)
    assert second.requests == tuple(Request(path=f"/containers/{key}/json") for key in IDS)
    assert second.using == ()
    for key, runtime in zip(IDS, ["nvidia", "runc", "nvidia-legacy"], strict=True):
        answers[f"/containers/{key}/json"] = detail(runtime)
    last = docker.usage(desired(), answers)
    assert last.requests == ()
    # By name, or by the short form of its ID where it has none.
    assert last.using == ("cuda", "c" * 12)


def test_what_is_not_answered_yet_is_asked_for_again() -> None:
    answers = {LIST: listing(), f"/containers/{IDS[0]}/json": detail("nvidia-cdi")}
    found = docker.usage(desired(), answers)
    assert found.using == ("cuda",)
    assert [request.path for request in found.requests] == [
        f"/containers/{key}/json" for key in IDS[1:]
    ]


def test_a_container_that_has_ended_meanwhile_uses_nothing() -> None:
    answers = {LIST: listing()} | {f"/containers/{key}/json": "null" for key in IDS}
    found = docker.usage(desired(), answers)
    assert (found.requests, found.using) == ((), ())


def test_no_container_runs() -> None:
    found = docker.usage(desired(), {LIST: "[]"})
    assert (found.requests, found.using) == ((), ())


@pytest.mark.parametrize("names", [[], None])
def test_a_container_without_a_name_is_named_by_its_id(names: list[str] | None) -> None:
    answers = {LIST: json.dumps([{"Id": IDS[0], "Names": names}])}
    answers[f"/containers/{IDS[0]}/json"] = detail("nvidia")
    assert docker.usage(desired(), answers).using == ("a" * 12,)


# --- what the binary says -------------------------------------------------------------------------

ARGV: Final = {
    "none seen": ((), ()),
    "bare": (("/usr/bin/dockerd",), ()),
    "a unit's": (
        ("/usr/bin/dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock"),
        ("-H", "fd://", "--containerd=/run/containerd/containerd.sock"),
    ),
    "a file": (("dockerd", "--debug", "--config-file", "/x.json", "--iptables=false"),
               ("--debug", "--iptables=false")),
    "a file, joined": (("dockerd", "--config-file=/x.json", "--debug"), ("--debug",)),
    "a file without a name": (("dockerd", "--debug", "--config-file"), ("--debug",)),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "own"), ARGV.values(), ids=ARGV)
def test_the_candidate_is_tried_with_the_daemon_s_own_flags(
    argv: tuple[str, ...], own: tuple[str, ...]
) -> None:
    seen = observe(b"{}", argv=argv)
    found = planner.plan(ADAPTER, desired(), seen)
    question = planner.candidate_query(ADAPTER, desired(), seen, found)
    assert question is not None
    assert question.argv == (*own, "--validate", "--config-file", token(0))
    assert question.files == (after(b"{}", found),)
    assert question.names == (CONFIG,)


def test_there_is_no_trial_without_a_binary_or_a_file() -> None:
    found = plan(desired(), b"{}")
    assert planner.candidate_query(ADAPTER, desired(), observe(b"{}", binary=None), found) is None
    result, owned = installed(desired(), None)
    back = removal(result, owned)
    assert [change.action for change in back.changes] == ["delete"]
    assert planner.candidate_query(ADAPTER, desired(), observe(result, owned), back) is None


VERDICTS: Final = {
    "well": (BinaryResult(code=0, out="configuration OK\n", err=""), []),
    "no such flag": (
        BinaryResult(code=125, out="", err="unknown flag: --validate\nSee 'dockerd --help'.\n"),
        [],
    ),
    "refused": (
        BinaryResult(
            code=1, out="", err="warning: x\nunable to configure the Docker daemon: y\n\n"
        ),
        ["/usr/bin/dockerd refuses the change: unable to configure the Docker daemon: y"],
    ),
    "another flag": (
        BinaryResult(code=125, out="", err="unknown flag: --frob\n"),
        ["/usr/bin/dockerd refuses the change: unknown flag: --frob"],
    ),
    "silent": (
        BinaryResult(code=-1, out="said elsewhere", err=" \n"),
        ["/usr/bin/dockerd refuses the change: no error message"],
    ),
}


@pytest.mark.parametrize(("answer", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_the_binary_s_verdict(answer: BinaryResult, expected: list[str]) -> None:
    seen = observe(b"{}")
    assert list(docker.candidate_problems(desired(), seen, answer)) == expected
    assert list(docker.removal_problems(desired(), seen, answer)) == expected


def test_a_refused_candidate_is_no_plan() -> None:
    answer = BinaryResult(code=1, out="", err="conflict\n")
    with pytest.raises(ConfigError) as caught:
        planner.check(ADAPTER, desired(), observe(b"{}"), answer)
    assert (
        str(caught.value)
        == f"{CONFIG}: the change is refused: /usr/bin/dockerd refuses the change: conflict"
    )


# --- what the toolkit runs in the end -------------------------------------------------------------

LOW_LEVEL: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "nothing said": ({}, ("runc",)),
    "the default first": (
        {"default-runtime": "crun", "runtimes": {"kata": {"path": "/k"}, "crun": {"path": "/c"}}},
        ("/c", "/k"),
    ),
    "the built-in default first": ({"runtimes": {"crun": {"path": "/c"}}}, ("runc", "/c")),
    "runc of another place": (
        {"runtimes": {"crun": {"path": "/c"}, "runc": {"path": "/r"}}},
        ("/r", "/c"),
    ),
    "a shim has no binary": (
        {"runtimes": {"x": {"runtimeType": "io.containerd.runsc.v1"}}},
        ("runc",),
    ),
    "a shim as default": ({"default-runtime": "io.containerd.runsc.v1"}, ("runc",)),
    "the vendor's do not count": (
        {
            "default-runtime": "nvidia",
            "runtimes": {"nvidia": {"path": "/v"}, "nvidia-x": {"path": "/x"}},
        },
        ("runc",),
    ),
    "nor ones that run the vendor's": (
        {
            "default-runtime": "gpu",
            "runtimes": {"gpu": {"path": "/v/nvidia-container-runtime.cdi"}},
        },
        ("runc",),
    ),
    "each once": (
        {"default-runtime": "a", "runtimes": {"a": {"path": "/c"}, "b": {"path": "/c"}}},
        ("/c",),
    ),
}


@pytest.mark.parametrize(("content", "expected"), LOW_LEVEL.values(), ids=LOW_LEVEL)
def test_the_low_level_runtimes(content: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert plan(desired(), json.dumps(content).encode()).low_level == expected


def test_the_default_before_us_stays_the_first_low_level_runtime() -> None:
    before = (
        b'{"default-runtime": "crun", "runtimes": {"kata": {"path": "/k"}, "crun": {"path": "/c"}}}'
    )
    result, owned = installed(desired(), before)
    assert plan(desired(), result, owned).low_level == ("/c", "/k")


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        ({}, ("runc", "runc")),
        ({"default-runtime": "c", "runtimes": {"c": {"path": "/c"}}}, ("c", "c")),
        (
            {"default-runtime": "k", "runtimes": {"k": {"runtimeType": "io.containerd.k.v2"}}},
            ("runc", "k"),
        ),
        ({"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/v"}}}, ("runc", "runc")),
    ],
)
def test_the_runtimes_that_ours_are_made_from(
    content: dict[str, Any], origin: tuple[str, str]
) -> None:
    before = json.dumps(content).encode()
    assert plan(desired(), before).origin == Origin(source=origin[0], default=origin[1])
    result, owned = installed(desired(), before)
    assert plan(desired(), result, owned).origin == Origin(source=origin[0], default=origin[1])
    assert plan(desired(default=None), before).origin == Origin(source=origin[0])


# --- the corpus -----------------------------------------------------------------------------------

REFUSED: Final = {
    "duplicate-runtimes-keys.json": "a key is there twice, and Go and Python take another one"
}


@pytest.mark.parametrize("default", ["nvidia", None])
@pytest.mark.parametrize("name", CASES)
def test_the_corpus_leads_there_and_back(name: str, default: str | None) -> None:
    if name == "absent":
        pytest.skip(f"there is no corpus beside the project (../{'/'.join(CORPUS.parts[-3:])})")
    data, wish = (CORPUS / name).read_bytes(), desired(default=default, enable_cdi=True)
    if name.startswith("broken-") or name in REFUSED:
        with pytest.raises(ConfigError) as caught:
            plan(wish, data)
        assert caught.value.path == CONFIG
        return
    result, owned = installed(wish, data)
    content, before = tree(result), tree(data)
    assert content["features"] == before.get("features", {}) | {"cdi": True}
    assert content["runtimes"] == before.get("runtimes", {}) | OURS
    mine = {"features", "runtimes", "default-runtime"}
    assert {k: v for k, v in content.items() if k not in mine} == {
        k: v for k, v in before.items() if k not in mine
    }
    assert plan(wish, result, owned).is_noop
    assert after(result, removal(result, owned)) == data
    # Every line that was there is there, but for the commas and the vendor's own entry.
    if default and not before.get("runtimes", {}).keys() & NAMES:
        lines = {line.strip().rstrip(b",") for line in (result or b"").splitlines()}
        kept = [
            line.strip().rstrip(b",")
            for line in data.splitlines()
            if b"default-runtime" not in line
        ]
        if len(kept) > 1:
            assert [line for line in kept if line not in lines] == []
