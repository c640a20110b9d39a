"""The TOML editor: what is not asked for stays byte for byte, whatever the document looks like."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import pytest
import tomli
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from runtimes.edits import value
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor, toml_scanner
from runtimes.model import ABSENT, Key

PATH: Final = "/etc/x.toml"
# A loop to work in: the campaign with more examples is tests/fuzz.
# Many documents do not have what a law needs, and are filtered out.
LIMITS: Final = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much]
)

# --- documents ------------------------------------------------------------------------------------

_NAMES: Final = st.sampled_from(
    ["a", "b", "c", "runc", "nvidia-cdi", "io.containerd.cri", "1", "é", 'q"q', ""]
)
_VALUES: Final = st.sampled_from(
    [
        "1", "-7", "0x1F", "1.5", "true", "false", '""', '"a # no comment"', "'C:\\[x]'", '"\\""',
        "1979-05-27T07:32:00Z", "[]", '["a", "b"]', "[[1], [2]]", "[ 1,2 , ]",
        '[\n  "x", # one\n\n  "y",\n]', '[\n  # only a comment\n]', '"""\n[no.header]\nk = 1\n"""',
        "'''\n# none\n'''", '"""ends in a quote\\""""', "''", "{}", "{ x = 1, y.z = 2 }",
        '{ "q.q" = [1, {r = "}"}] }',
        # TOML 1.1
        "{ x = 1, }", "{\n  x = 1,\n  y.z = 2, # why\n}", '{\n\tr = "}"\n}', '"f\\xfcr \\e"',
        "07:32",
    ]
)  # fmt: skip
_COMMENTS: Final = st.sampled_from(["", "  # why", " #", "\t# [not.a.header]"])
_GAPS: Final = st.sampled_from(
    ["", "", "", "\n", "# a comment\n", "  # k = 1\n", "\n\n", "\t\n", "# [x]\n\n"]
)
_INDENTS: Final = st.sampled_from(["", "", "  ", "\t", "    "])
_EQUALS: Final = st.sampled_from([" = ", "=", "  =\t"])


def spelled(name: str, *, single: bool) -> str:
    """Return a key part as a file may spell it."""
    if name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        return {"a": r'"\x61"', "b": '"b"'}.get(name, name) if single else name
    if single and "'" not in name:
        return f"'{name}'"
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def keys(draw: st.DrawFn, size: int) -> str:
    parts = draw(st.lists(_NAMES, min_size=1, max_size=size))
    dot = draw(st.sampled_from([".", ".", " . "]))
    return dot.join(spelled(part, single=draw(st.booleans())) for part in parts)


@st.composite
def statements(draw: st.DrawFn) -> str:
    """Return one statement with what stands above it, mostly valid in itself."""
    gap, indent, comment = draw(_GAPS), draw(_INDENTS), draw(_COMMENTS)
    kind = draw(st.sampled_from(["key", "key", "key", "dotted", "header", "header", "array"]))
    match kind:
        case "key" | "dotted":
            key = draw(keys(1 if kind == "key" else 3))
            return f"{gap}{indent}{key}{draw(_EQUALS)}{draw(_VALUES)}{comment}\n"
        case "header":
            return f"{gap}{indent}[{draw(keys(3))}]{comment}\n"
        case _:
            return f"{gap}{indent}[[{draw(keys(2))}]]{comment}\n"


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Return a valid document: statements that would make it invalid are omitted, in any order."""
    text = ""
    for statement in draw(st.lists(statements(), max_size=14)):
        try:
            tomli.loads(text + statement)
        except tomli.TOMLDecodeError:
            continue
        text += statement
    return text + draw(_GAPS)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    text = draw(texts())
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    if draw(st.integers(0, 5)) == 0:
        text = "\ufeff" + text
    return text.encode()


_LEAVES: Final = st.sampled_from([1, 0, True, "x", "", 'q"\n\\', ["a"], [], 2.5])
_TABLES: Final = st.dictionaries(
    st.sampled_from(["k", "options", "q.q"]), _LEAVES, min_size=1, max_size=3
)
_NESTED: Final = st.dictionaries(
    st.sampled_from(["runtime_type", "o.o"]), _LEAVES | _TABLES, min_size=1, max_size=3
)
_KEYS: Final = st.lists(_NAMES, min_size=1, max_size=4).map(tuple)


def leaves_of(tree: Mapping[str, Any], prefix: Key = ()) -> dict[Key, Any]:
    """Return every value of a tree by its key; arrays of tables count as values."""
    found: dict[Key, Any] = {}
    for name, item in tree.items():
        if isinstance(item, dict) and item:
            found |= leaves_of(item, (*prefix, name))
        else:
            found[*prefix, name] = item
    return found


def settable(tree: Mapping[str, Any], key: Key) -> bool:
    """Return whether a key can be set without removing any: its parents are tables or absent."""
    for depth in range(1, len(key)):
        held = value(tree, key[:depth])
        if held is not ABSENT and not isinstance(held, dict):
            return False
    return True


def with_key(tree: dict[str, Any], key: Key, new: Any) -> dict[str, Any]:
    """Return the tree that setting a key should give."""
    result = deepcopy(tree)
    holder = result
    for part in key[:-1]:
        holder = holder.setdefault(part, {})
    if isinstance(new, dict) and isinstance(holder.get(key[-1]), dict):
        for name, item in new.items():
            result = with_key(result, (*key, name), item)
    else:
        holder[key[-1]] = new
    return result


def solid(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without empty tables: a header without keys says nothing."""
    cut = {name: solid(item) if isinstance(item, dict) else item for name, item in tree.items()}
    return {name: item for name, item in cut.items() if not isinstance(item, dict) or item}


def touched(before: str, after: str) -> tuple[int, int]:
    """Return where `before` stops and starts again to be what `after` is."""
    limit = min(len(before), len(after))
    start = next((i for i in range(limit) if before[i] != after[i]), limit)
    same = next((i for i in range(limit - start) if before[-1 - i] != after[-1 - i]), limit - start)
    return start, len(before) - same


def statement_texts(text: str, *, without: Key) -> list[str]:
    """Return the statements that are neither below a key nor hold it, as they are written."""
    return [
        text[s.start : s.end].rstrip("\r\n")
        for s in toml_scanner.statements(text)
        if s.path[: len(without)] != without and (s.header or without[: len(s.path)] != s.path)
    ]


def has_array_of_tables(item: Any) -> bool:
    if isinstance(item, dict):
        return any(map(has_array_of_tables, item.values()))
    return isinstance(item, list) and any(isinstance(one, dict) for one in item)


# --- laws -----------------------------------------------------------------------------------------


@LIMITS
@given(documents())
def test_a_document_that_is_not_edited_keeps_its_bytes(data: bytes) -> None:
    assert toml_editor.parse(data, PATH).encode() == data


@LIMITS
@given(documents())
def test_the_statements_are_the_document(data: bytes) -> None:
    """Between the statements are blanks or comments, and each statement is what it claims."""
    document = toml_editor.parse(data, PATH)
    position = 0
    for statement in document.statements:
        between = document.text[position : statement.start]
        assert all(
            not line.strip() or line.strip().startswith("#") for line in between.splitlines()
        )
        position = statement.end
    assert tomli.loads(document.text[position:].lstrip("\ufeff")) == {}
    named = {s.path for s in document.statements if not s.header and not s.array}
    tree = toml_editor.tree(data, PATH)
    assert all(value(tree, path) is not ABSENT for path in named)


@LIMITS
@given(documents(), _KEYS, _LEAVES)
def test_put_changes_one_value_and_one_statement(data: bytes, key: Key, new: Any) -> None:
    tree = toml_editor.tree(data, PATH)
    assume(settable(tree, key))
    assume(not isinstance(value(tree, key), dict) and not has_array_of_tables(value(tree, key)))
    document = toml_editor.parse(data, PATH)
    after = toml_editor.put(document, key, new)
    assert toml_editor.tree(after.encode(), PATH) == with_key(tree, key, new)
    start, end = touched(document.text, after.text)
    holders = [
        s
        for s in document.statements
        if not s.header and not s.array and key[: len(s.path)] == s.path
    ]
    assert start == end or any(s.start <= start and end <= s.end for s in holders)
    assert after.bom == document.bom
    if after.text.count("\r\n") == 0 or document.newline == "\n":
        return
    assert "\n" not in touched_text(document.text, after.text).replace("\r\n", "")


def touched_text(before: str, after: str) -> str:
    start, end = touched(before, after)
    return after[start : len(after) - (len(before) - end)]


@LIMITS
@given(documents(), _KEYS, _NESTED)
def test_put_of_a_table_only_adds_what_is_new(data: bytes, key: Key, new: dict[str, Any]) -> None:
    tree = toml_editor.tree(data, PATH)
    assume(settable(tree, key) and value(tree, key) is ABSENT)
    document = toml_editor.parse(data, PATH)
    after = toml_editor.put(document, key, new)
    assert toml_editor.tree(after.encode(), PATH) == with_key(tree, key, new)
    start, end = touched(document.text, after.text)
    holders = [
        s
        for s in document.statements
        if not s.header and not s.array and key[: len(s.path)] == s.path
    ]
    assert start == end or any(s.start <= start and end <= s.end for s in holders)


@LIMITS
@given(documents(), _KEYS)
def test_drop_takes_one_value_and_leaves_every_other_statement(data: bytes, key: Key) -> None:
    tree = toml_editor.tree(data, PATH)
    assume(not has_array_of_tables(value(tree, key)))
    document = toml_editor.parse(data, PATH)
    after = toml_editor.drop(document, key)
    expected = {k: v for k, v in leaves_of(tree).items() if k[: len(key)] != key and v != {}}
    assert {
        k: v for k, v in leaves_of(toml_editor.tree(after.encode(), PATH)).items() if v != {}
    } == expected
    assert statement_texts(after.text, without=key) == statement_texts(document.text, without=key)
    if value(tree, key) is ABSENT:
        assert after.encode() == data


@st.composite
def inline_tables(draw: st.DrawFn, depth: int = 2) -> str:
    """Draw an inline table of TOML 1.0 whose keys may be dotted."""
    first = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
    items = []
    for name in first:
        below = draw(st.lists(st.sampled_from(["", ".x", ".y", '." z"']), unique=True, min_size=1))
        for rest in [""] if "" in below else below:
            value = draw(st.sampled_from(["1", '",}"', "[ 1, ]", "{}"]))
            if depth and draw(st.booleans()):
                value = draw(inline_tables(depth=depth - 1))
            items.append(f"{name}{rest} = {value}")
    blank = st.sampled_from(["", " "])
    return f"{{{draw(blank)}{f'{draw(blank)},{draw(blank)}'.join(items)}{draw(blank)}}}"


@LIMITS
@given(inline_tables(), st.data())
def test_what_is_toml_1_0_stays_it_when_keys_of_inline_tables_go(
    text: str, drawn: st.DataObject
) -> None:
    data = f"t = {text} # why\n".encode()
    tree = tomllib.loads(data.decode())
    keys = sorted({k[:n] for k in leaves_of(tree) for n in range(2, len(k) + 1)})
    assume(keys)
    key = drawn.draw(st.sampled_from(keys))
    after = toml_editor.drop(toml_editor.parse(data, PATH), key)
    kept = {k: v for k, v in leaves_of(tomllib.loads(after.text)).items() if v != {}}
    assert kept == {k: v for k, v in leaves_of(tree).items() if k[: len(key)] != key and v != {}}


@LIMITS
@given(documents(), _KEYS, _NESTED)
def test_a_table_put_and_dropped_leaves_the_original_bytes(
    data: bytes, key: Key, new: dict[str, Any]
) -> None:
    tree = toml_editor.tree(data, PATH)
    assume(settable(tree, key) and value(tree, key) is ABSENT)
    document = toml_editor.parse(data, PATH)
    inline = any(
        not s.header and not s.array and key[: len(s.path)] == s.path for s in document.statements
    )
    assume(not inline)  # An inline table is written anew as a whole.
    # The highest table that is not there yet is what the editor adds.
    assume(len(key) == 1 or isinstance(value(tree, key[:-1]), dict))
    assert toml_editor.drop(toml_editor.put(document, key, new), key).encode() == data


@LIMITS
@given(documents(), _KEYS, _NESTED)
def test_what_is_cut_anew_near_an_edit_is_what_all_of_it_would_be(
    data: bytes, key: Key, new: dict[str, Any]
) -> None:
    document = toml_editor.parse(data, PATH)
    with suppress(ConfigError):
        document = toml_editor.put(document, key, new)
    assert document.statements == tuple(toml_scanner.statements(document.text))
    document = toml_editor.drop(document, key)
    assert document.statements == tuple(toml_scanner.statements(document.text))


@LIMITS
@given(documents(), st.data())
def test_what_is_cut_anew_is_right_wherever_the_text_changes(
    data: bytes, drawn: st.DataObject
) -> None:
    document = toml_editor.parse(data, PATH)
    ends = sorted({0, len(document.text), *(s.start for s in document.statements)})
    start, end = sorted(drawn.draw(st.tuples(st.sampled_from(ends), st.sampled_from(ends))))
    new = drawn.draw(
        st.sampled_from(
            ["", "a = 1\n", "[t.u]\n", "# no\n\n", "[[t]]\n", "x.y = [\n1]\n[z]\nk = 2\n"]
        )
    )
    if document.text[:start] and not document.text[:start].endswith("\n"):
        new = f"\n{new}"
    after = toml_scanner.replace_span(document, start, end, new)
    assert after.text == document.text[:start] + new + document.text[end:]
    assert after.statements == tuple(toml_scanner.statements(after.text))


RUNTIMES: Final = b"""\
runtimes = {
  # the usual one
  runc = { runtime_type = "a", options = {
    Systemd\x43group = true, } }, # why
  "\\x6bata" = { runtime_type = "b" },
}
# end
"""


def test_an_inline_table_over_several_lines_is_edited_in_one_place() -> None:
    data = RUNTIMES.replace(rb"Systemd\x43", b"SystemdC")
    document = toml_editor.put(
        toml_editor.parse(data, PATH), ("runtimes", "nvidia"), {"runtime_type": "c"}
    )
    start, end = touched(data.decode(), document.text)
    assert start == end == data.index(b"}\n# end")
    assert b'nvidia = {runtime_type = "c"}' in document.encode()
    document = toml_editor.drop(document, ("runtimes", "kata"))
    tree = tomli.loads(document.text)["runtimes"]
    assert {name: table["runtime_type"] for name, table in tree.items()} == {
        "runc": "a",
        "nvidia": "c",
    }
    assert "# the usual one" in document.text
    assert "# why" in document.text


def test_what_tomlkit_would_break_is_refused_with_the_line() -> None:
    data = b"version = 2\nk = {\n  a = 1,\n  b = 2 # two, not three\n}\n"
    with pytest.raises(ConfigError) as caught:
        toml_editor.put(toml_editor.parse(data, PATH), ("k", "c", "d"), 1)
    assert (
        str(caught.value) == f"{PATH}:2: nvidia-toolkit cannot edit the value of k as it is written"
    )
    assert caught.value.hint.startswith("write this inline table on one line")


@pytest.mark.parametrize(
    ("data", "where", "why"),
    [
        (b"a = {\n  b = 1\n  c = 2\n}\n", "3:3", "it is not valid TOML: unclosed inline table"),
        (b'a = "\\y"\n', "1:8", "it is not valid TOML: unescaped '\\' in a string"),
        (b"a = 1\n# f\xfcr\n", "2:4", "it is not UTF-8 text (byte 0xfc)"),
    ],
)
def test_a_file_that_no_parser_takes_is_refused_with_its_place(
    data: bytes, where: str, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        toml_editor.parse(data, PATH)
    assert str(caught.value) == f"{PATH}:{where}: {why}"
    assert "even if the runtime accepts it as it is" in caught.value.hint


def calls(action: Callable[[], object]) -> int:
    """Count every call that an action makes, Python's and C's."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return counted


def test_the_work_grows_with_the_document_and_not_faster() -> None:
    def edit(tables: int) -> Callable[[], object]:
        text = "".join(f"[t{i}]\na = 1\nb = 2\n" for i in range(tables))

        def action() -> object:
            document = toml_editor.parse(text.encode(), PATH)
            document = toml_editor.put(document, ("t5", "options"), {"x": 1, "y": {"z": 2}})
            return toml_editor.drop(document, ("t5",)).encode()

        return action

    calls(edit(10))  # What is made once and kept is not counted.
    assert calls(edit(400)) < 2.2 * calls(edit(200))


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A key that is set in a document (ABSENT: dropped), and the whole document afterwards."""

    before: str
    key: Key
    new: Any
    after: str


HANDLER: Final = {"runtime_type": "t", "options": {"BinaryName": "/b"}}
CASES: Final = {
    "value in place, comment kept": Case(
        before="a = 1 # one\nb = 2\n", key=("a",), new=3, after="a = 3 # one\nb = 2\n"
    ),
    "below the last key of its table": Case(
        before="[a]\nx = 1\n\n[b]\ny = 1\n", key=("a", "z"), new="n",
        after='[a]\nx = 1\nz = "n"\n\n[b]\ny = 1\n'
    ),
    "indented as its sibling": Case(
        before="[a]\n  x = 1\n", key=("a", "z"), new=True, after="[a]\n  x = 1\n  z = true\n"
    ),
    "no final newline": Case(before="a = 1", key=("b",), new=2, after="a = 1\nb = 2"),
    "windows line ends": Case(before="a = 1\r\n", key=("b",), new=2, after="a = 1\r\nb = 2\r\n"),
    "licence stays first": Case(
        before="# Copyright\n\n# about t\n[t]\n", key=("version",), new=2,
        after="# Copyright\n\nversion = 2\n\n# about t\n[t]\n",
    ),
    "into an inline table": Case(
        before='r = { runc = {t = "x"} }  # all\n', key=("r", "nvidia"), new={"t": "y"},
        after='r = { runc = {t = "x"}, nvidia = {t = "y"}}  # all\n',
    ),
    "beside dotted keys": Case(
        before='a.runc.type = "x"\n', key=("a", "nvidia"), new={"type": "y"},
        after='a.runc.type = "x"\na.nvidia = {type = "y"}\n',
    ),
    "behind its siblings, in their spelling": Case(
        before="[p.'x.y'.r.runc]\nt = 1\n[p.'x.y'.r.runc.options]\nu = 1\n\n[z]\n",
        key=("p", "x.y", "r", "nvidia"), new=HANDLER,
        after=(
            "[p.'x.y'.r.runc]\nt = 1\n[p.'x.y'.r.runc.options]\nu = 1\n\n"
            "[p.'x.y'.r.nvidia]\nruntime_type = \"t\"\n\n"
            "[p.'x.y'.r.nvidia.options]\nBinaryName = \"/b\"\n\n[z]\n"
        ),
    ),
    "before its sub-table": Case(
        before="[a.b.c]\nx = 1\n", key=("a", "y"), new=1, after="[a]\ny = 1\n\n[a.b.c]\nx = 1\n"
    ),
    "value over lines": Case(
        before='a = [\n  "x", # one\n]\nb = 1\n', key=("a",), new=["y"], after='a = ["y"]\nb = 1\n'
    ),
    "drop of a key": Case(before="a = 1\nb = 2\n", key=("a",), new=ABSENT, after="b = 2\n"),
    "drop of a table that lies in pieces": Case(
        before="[t.a]\nx = 1\n\n[o]\ny = 1\n\n[t.a.b]\nz = 1\n", key=("t", "a"), new=ABSENT,
        after="\n[o]\ny = 1\n",
    ),
    "drop from an inline table": Case(
        before="a = {b = 1, c = 2} # x\n", key=("a", "b"), new=ABSENT, after="a = { c = 2} # x\n"
    ),
    "drop of the first dotted key of an inline table": Case(
        before="a = {b.c = 1,d = [1,],e = 2}\n", key=("a", "b", "c"), new=ABSENT,
        after="a = {d = [1,],e = 2}\n"
    ),
    "drop of the last dotted keys of an inline table": Case(
        before='a = {b = ",}", c.d = 1, c.e = 2}\n', key=("a", "c"), new=ABSENT,
        after='a = {b = ",}"  }\n'
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_text_afterwards(case: Case) -> None:
    document = toml_editor.parse(case.before.encode(), PATH)
    edit = (
        toml_editor.drop(document, case.key)
        if case.new is ABSENT
        else toml_editor.put(document, case.key, case.new)
    )
    assert edit.encode().decode() == case.after


ARRAYS: Final = {
    "right behind": "[[a]]\n[a.c]\nx = 1\n",
    "behind a sibling": "[[a]]\n[a.b]\n[a.c]\nx = 1\n",
    "behind something else": "[[a]]\n[z]\n[a.c]\nx = 1\n",
    "dotted": "[[a]]\nc.x = 1\n",
}


@pytest.mark.parametrize("text", ARRAYS.values(), ids=ARRAYS)
def test_what_lies_in_an_array_of_tables_has_no_name(text: str) -> None:
    """A key names no element of an array, so nothing below it can be meant."""
    document = toml_editor.parse(text.encode(), PATH)
    assert value(toml_editor.tree(text.encode(), PATH), ("a", "c")) is ABSENT
    assert toml_editor.drop(document, ("a", "c")).encode().decode() == text


BROKEN: Final = {
    "key without value": (b"a = 1\nb\n", f"{PATH}:2:2: it is not valid TOML: "),
    "cut off in a header": (b"[a]\n[b.", f"{PATH}:2:4: it is not valid TOML: "),
    "twice the same table": (
        b"[a]\n[a]\n",
        f"{PATH}:2:3: it is not valid TOML: cannot declare a twice",
    ),
    "twice the same table below others": (
        b"[a.'b.c'.d]\n[a.'b.c'.d]\n",
        f'{PATH}:2:11: it is not valid TOML: cannot declare a."b.c".d twice',
    ),
    "a key after its inline table": (b"a = {}\n[a]\n", f"{PATH}:2:3: it is not valid TOML: "),
    "not UTF-8": (b"a = 1\nb = '\xff'\n", f"{PATH}:2:6: it is not UTF-8 text (byte 0xff)"),
    "nested beyond reason": (
        b"a = " + b"[" * 5000,
        f"{PATH}: it is nested too deeply to be a configuration",
    ),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_toml_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml_editor.parse(data, PATH)
    assert str(caught.value).startswith(message)


def test_the_values_of_a_text_that_is_read_twice_are_the_caller_s_own() -> None:
    """A large text is parsed once, and each caller may change the result that it got."""
    data = b'[a]\nb = [{ c = ["d"] }]\n' + b"# a comment\n" * 1000
    first, again = toml_scanner.tree(data, "a"), toml_scanner.read(data, "a")[1]
    assert first == again == {"a": {"b": [{"c": ["d"]}]}}
    first["a"]["b"][0]["c"].append("e")
    first["a"]["f"] = 1
    assert again == toml_scanner.tree(data, "a") == {"a": {"b": [{"c": ["d"]}]}}


@pytest.mark.parametrize("padding", [0, 1000])
def test_a_text_in_toml_1_1_is_known_as_that_however_often_it_is_read(padding: int) -> None:
    data = b"a = { b = 1, }\n" + b"# a comment\n" * padding
    for _ in range(2):
        assert toml_scanner.tree(data, "a") == {"a": {"b": 1}}
        assert toml_scanner.needs_1_1(data) == (sys.version_info < (3, 15))
        assert not toml_scanner.needs_1_1(data.replace(b"1, }", b"1 }"))
