from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimes import edits
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import json_editor
from runtimes.model import ABSENT, Edit, Key

PATH = "/etc/docker/daemon.json"
CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "docker"
BROKEN = {
    "broken-toplevel-string.json": "it is not a JSON object",
    "broken-truncated.json": "it is not valid JSON: unterminated string",
    "duplicate-runtimes-keys.json": (
        'it is ambiguous: the key "runtimes" occurs twice in one object'
    ),
}

# --- JSON texts, written in many ways -----------------------------------------------------------

NUMBERS = [
    "0",
    "-0",
    "7",
    "1e3",
    "1.0",
    "-0.0",
    "1E+2",
    "0.10",
    "9007199254740993",
    "123456789012345678901234",
]
NAMES = [
    "a",
    "b",
    "runtimes",
    "features",
    "default-runtime",
    "a.b",
    "",
    "é",
    'q"',
    "\\",
    "tab\t",
    "\U0001f600",
]
names = st.sampled_from(NAMES)


class Number(str):
    __slots__ = ()


scalars = st.one_of(
    st.sampled_from([True, False, None]),
    st.sampled_from(NUMBERS).map(Number),
    st.sampled_from(["", "x", "é/ü", 'say "{[,:]}"', "\\", "a\nb", "\u2028", "\U0001f600"]),
)
contents = st.recursive(
    scalars,
    lambda below: st.one_of(st.dictionaries(names, below, max_size=4), st.lists(below, max_size=3)),
    max_leaves=12,
)
objects = st.dictionaries(names, contents, max_size=5)
wishes = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from(["", "new", "é\ud800", '"']),
        st.lists(st.one_of(st.booleans(), st.text(max_size=3)), max_size=3),
    ),
    lambda below: st.dictionaries(names, below, max_size=3),
    max_leaves=5,
)


class Writer:
    """Writes a tree as JSON text in one style, or with chance deciding every space."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.newline = rng.choice(["\n", "\n", "\r\n"])
        self.style = rng.choice(["chaos", "indent", "line"])
        self.unit = rng.choice(["  ", "    ", "\t", ""])
        self.colon = rng.choice([":", ": ", " : ", ":   "])
        self.comma = rng.choice([",", ", "])
        self.pad = rng.choice(["", " "])

    def document(self, content: Any) -> bytes:
        bom = self.rng.choice([b"", b"", b"\xef\xbb\xbf"])
        text = (
            self.space()
            + self.value(content, "")
            + self.rng.choice(["", self.newline])
            + self.space()
        )
        return bom + text.encode()

    def space(self) -> str:
        if self.style != "chaos":
            return ""
        return "".join(
            self.rng.choices([" ", "\t", self.newline, "\n"], k=self.rng.choice([0, 0, 1, 2]))
        )

    def value(self, content: Any, indent: str) -> str:
        if isinstance(content, Number):
            return str(content)
        if isinstance(content, str):
            return self.string(content)
        if isinstance(content, dict):
            inner = indent + self.unit
            items = [
                self.string(k) + self.gap(self.colon) + self.value(v, inner)
                for k, v in content.items()
            ]
            return self.block("{", items, "}", indent)
        if isinstance(content, list):
            return self.block(
                "[", [self.value(item, indent + self.unit) for item in content], "]", indent
            )
        return json.dumps(content)

    def gap(self, sign: str) -> str:
        return f"{self.space()}{sign.strip()}{self.space()}" if self.style == "chaos" else sign

    def block(self, start: str, items: list[str], end: str, indent: str) -> str:
        if self.style == "chaos":
            text = self.space()
            for index, item in enumerate(items):
                text += (self.gap(",") if index else "") + item
            return start + text + self.space() + end
        if not items:
            return start + self.rng.choice(["", "", " "]) + end
        if self.style == "line":
            return start + self.pad + self.comma.join(items) + self.pad + end
        blank = self.newline * self.rng.choice([1, 1, 1, 2])
        return (
            start
            + self.newline
            + f",{blank}".join(indent + self.unit + item for item in items)
            + self.newline
            + indent
            + end
        )

    def string(self, text: str) -> str:
        if self.rng.random() < 0.3:
            spelled = "".join(f"\\u{ord(c):04x}" if ord(c) < 65536 else c for c in text)
            return f'"{spelled}"'
        return json.dumps(text, ensure_ascii=self.rng.random() < 0.5)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    content = draw(objects)
    return Writer(draw(st.randoms(use_true_random=False))).document(content)


def reference(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(data.decode("utf-8-sig"))
    return content


def keys(content: Any, prefix: Key = ()) -> Iterator[Key]:
    if isinstance(content, dict):
        for name, below in content.items():
            yield (*prefix, name)
            yield from keys(below, (*prefix, name))


def spelled(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def edited(data: bytes, key: Key, new: Any) -> bytes:
    document = json_editor.parse(data, PATH)
    changed = (
        json_editor.drop(document, key) if new is ABSENT else json_editor.put(document, key, new)
    )
    after: bytes = changed.encode()
    return after


def put_into(content: Any, key: Key, new: Any) -> Any:
    """Say in plain values what a put means."""
    if not key:
        if isinstance(content, dict) and isinstance(new, dict):
            merged = dict(content)
            for name, item in new.items():
                merged[name] = put_into(merged.get(name), (), item)
            return merged
        return new
    below = dict(content) if isinstance(content, dict) else {}
    below[key[0]] = put_into(below.get(key[0]), key[1:], new)
    return below


def reachable(content: Any, key: Key) -> bool:
    for part in key[:-1]:
        if part not in content:
            return True
        content = content[part]
        if not isinstance(content, dict):
            return False
    return True


def touched(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """Return what was taken out and what was put in between the common start and end."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return before[start : len(before) - end], after[start : len(after) - end]


# --- properties ---------------------------------------------------------------------------------

calm = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@calm
@given(documents())
def test_a_document_gives_its_bytes_back(data: bytes) -> None:
    assert json_editor.parse(data, PATH).encode() == data
    assert spelled(json_editor.tree(data, PATH)) == spelled(reference(data))


@calm
@given(documents(), st.data(), wishes)
def test_put_changes_exactly_one_key(data: bytes, chance: st.DataObject, new: Any) -> None:
    found = list(keys(reference(data)))
    chosen = st.lists(names, min_size=1, max_size=3).map(tuple)
    key: Key = chance.draw(st.one_of(chosen, st.sampled_from(found)) if found else chosen)
    before = reference(data)
    if not reachable(before, key):
        with pytest.raises(ConfigError, match="is not an object"):
            edited(data, key, new)
        return
    after = edited(data, key, new)
    expected = put_into(before, key, new)
    assert spelled(reference(after)) == spelled(expected)
    assert list(keys(reference(after)))[: len(before)] == list(keys(expected))[: len(before)]
    assert edited(after, key, new) == after
    assert spelled(json_editor.tree(after, PATH)) == spelled(expected)


@calm
@given(documents(), st.lists(names, min_size=1, max_size=3).map(tuple), wishes)
def test_a_new_key_is_only_added_text_and_leaves_without_a_trace(
    data: bytes, key: Key, new: Any
) -> None:
    before = reference(data)
    missing = next(
        (key[:n] for n in range(1, len(key) + 1) if edits.value(before, key[:n]) is ABSENT), None
    )
    if missing is None or not reachable(before, key):
        return
    after = edited(data, key, new)
    removed, _ = touched(data, after)
    assert removed == b""
    assert edited(after, missing, ABSENT) == data


@calm
@given(documents(), st.data())
def test_drop_takes_exactly_one_key(data: bytes, chance: st.DataObject) -> None:
    before = reference(data)
    found = list(keys(before))
    if not found:
        return
    key = chance.draw(st.sampled_from(found))
    after = edited(data, key, ABSENT)
    holder = before
    for part in key[:-1]:
        holder = holder[part]
    del holder[key[-1]]
    assert spelled(reference(after)) == spelled(before)
    _, added = touched(data, after)
    assert added == b""
    assert edited(after, key, ABSENT) == after


@calm
@given(documents(), st.data(), st.one_of(st.booleans(), st.text(max_size=3), st.integers()))
def test_a_new_value_replaces_the_old_one_alone(
    data: bytes, chance: st.DataObject, new: Any
) -> None:
    found = list(keys(reference(data)))
    if not found:
        return
    key = chance.draw(st.sampled_from(found))
    node = json_editor.parse(data, PATH).root
    for part in key:
        assert node is not None
        node = node.at(part)
    assert node is not None
    text = data.decode()
    shift = text.startswith("\ufeff")
    after = edited(data, key, new).decode()
    same = spelled(edits.value(reference(data), key)) == spelled(new)
    assert after.startswith(text[: node.start + shift])
    assert after.endswith(text[node.end + shift :])
    assert same == (after == text)


@calm
@given(
    documents(),
    st.lists(  # nobody wants two things of one key
        st.tuples(st.lists(names, min_size=1, max_size=2).map(tuple), wishes),
        max_size=3,
        unique_by=lambda pair: pair[0],
    ),
)
def test_apply_and_reverse(data: bytes, pairs: list[tuple[Key, Any]]) -> None:
    wants = [DesiredKey(path=PATH, key=key, new=new) for key, new in pairs]
    try:
        change = edits.apply(json_editor, PATH, data, wants)
    except ConfigError:
        assert not all(
            reachable(before, key) for before in stages(reference(data), pairs) for key, _ in pairs
        )
        return
    if change is None or change.after is None or overlapping(change.edits):
        return
    assert edits.apply(json_editor, PATH, change.after, wants) is None
    restored, stayed = edits.reverse(json_editor, PATH, change.after, change.edits)
    assert stayed == ()
    now = without_made_parents(reference(data), reference(restored), change.edits)
    assert edits.differences(reference(data), now) == []
    if all(edit.old is ABSENT and len(edit.key) == 1 for edit in change.edits):
        assert restored == data


def overlapping(changes: tuple[Edit, ...]) -> bool:
    return len({edit.key[0] for edit in changes}) < len(changes)


def stages(content: dict[str, Any], pairs: list[tuple[Key, Any]]) -> Iterator[dict[str, Any]]:
    yield content
    for key, new in pairs:
        content = put_into(content, key, new)
        yield content


def without_made_parents(
    before: dict[str, Any], now: dict[str, Any], changes: tuple[Edit, ...]
) -> dict[str, Any]:
    """Take out the parents that `apply` made and `reverse` left empty."""
    made = {edit.key[0] for edit in changes if edit.key[0] not in before}
    return {name: item for name, item in now.items() if name not in made or item != {}}


@calm
@given(
    documents(),
    st.dictionaries(names, scalars.filter(lambda s: not isinstance(s, Number)), min_size=1),
)
def test_the_other_features_stay(data: bytes, features: dict[str, Any]) -> None:
    # NVIDIA's installer replaces the whole `features` when it enables CDI, and loses `buildkit`.
    document = json_editor.drop(json_editor.parse(data, PATH), ("features",))
    data = json_editor.put(document, ("features",), features).encode()
    want = DesiredKey(path=PATH, key=("features",), new={"cdi": True})
    change = edits.apply(json_editor, PATH, data, [want])
    after = reference(change.after if change and change.after else data)
    assert after["features"] == {**features, "cdi": True}
    assert reference(edited(data, ("features",), {"cdi": True})) == after


# --- examples -----------------------------------------------------------------------------------

NVIDIA = {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "args": []}}


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\r ", b"{}"])
def test_an_empty_file_is_an_empty_object(data: bytes) -> None:
    assert json_editor.tree(data, PATH) == {}
    assert json_editor.parse(data, PATH).encode() == data
    assert edited(data, ("a",), ABSENT) == data
    after = edited(data, ("runtimes",), NVIDIA)
    assert after.decode() == (
        "{\n"
        '    "runtimes": {\n'
        '        "nvidia": {\n'
        '            "path": "/usr/bin/nvidia-container-runtime",\n'
        '            "args": []\n'
        "        }\n"
        "    }\n"
        "}" + ("" if data == b"{}" else "\n")
    )


def test_an_empty_file_keeps_its_bom_and_line_end() -> None:
    assert edited(b"\xef\xbb\xbf\r\n", ("a",), 1) == b'\xef\xbb\xbf{\r\n    "a": 1\r\n}\r\n'


@pytest.mark.parametrize(
    ("before", "key", "new", "after"),
    [
        ('{"a":1}', "b", {"c": [1, "x"]}, '{"a":1,"b":{"c":[1,"x"]}}'),
        ('{ "a":["x"] }', "b", {"c": 1}, '{ "a":["x"], "b":{ "c":1 } }'),
        ('{"a": {}}', "a.b", 1, '{"a": {"b": 1}}'),
        ('{"a": { }}', "a.b", 1, '{"a": { "b": 1 }}'),
        ('{\n\t"a": {}\n}', "a.b", {}, '{\n\t"a": {\n\t\t"b": {}\n\t}\n}'),
        ("{\n}\n", "a", 1, '{\n\n    "a": 1\n}\n'),
        (
            '{\r\n "a" : 1\r\n}',
            "b.c",
            True,
            '{\r\n "a" : 1,\r\n "b" : {\r\n  "c" : true\r\n }\r\n}',
        ),
        ('{\n  "a": 1,\n\n  "b": 2\n}', "c", 3, '{\n  "a": 1,\n\n  "b": 2,\n  "c": 3\n}'),
        ('{\n  "a": 1\n  ,"b": 2\n}', "c", 3, '{\n  "a": 1\n  ,"b": 2\n  ,"c": 3\n}'),
        ('{\n  "a":      1\n}', "b", None, '{\n  "a":      1,\n  "b": null\n}'),
        ('{\n  "a": {"x": 1}\n}', "b", {"y": 2}, '{\n  "a": {"x": 1},\n  "b": {"y": 2}\n}'),
        ('{"\\u0061": 1e3}', "a", 1000.0, '{"\\u0061": 1e3}'),
        ('{"\\u0061": 1e3}', "a", 1000, '{"\\u0061": 1000}'),
        (
            '{"a": "\\u00e9", "b": 9007199254740993}',
            "c",
            "é",
            '{"a": "\\u00e9", "b": 9007199254740993, "c": "é"}',
        ),
        (
            '{"a": {"buildkit" :true,"x": {"y": 1}}, "b":1}',
            "a",
            {"x": {"y": 2, "z": 3}, "cdi": True},
            '{"a": {"buildkit" :true,"x": {"y": 2,"z": 3},"cdi": true}, "b":1}',
        ),
        ('{"a": 1}', "a", {"b": 1}, '{"a": {"b": 1}}'),
        ('{"a": {"b": 1}}', "a", 1, '{"a": 1}'),
        ('{"a": 1, "b": 2, "c": 3}', "a", ABSENT, '{"b": 2, "c": 3}'),
        ('{"a": 1, "b": 2, "c": 3}', "b", ABSENT, '{"a": 1, "c": 3}'),
        ('{"a": 1, "b": 2, "c": 3}', "c", ABSENT, '{"a": 1, "b": 2}'),
        ('{\n  "a": {\n    "b": 1\n  }\n}', "a.b", ABSENT, '{\n  "a": {}\n}'),
        ('{ "a": 1 }', "a", ABSENT, "{ }"),
        ('{"a": 1}', "b", ABSENT, '{"a": 1}'),
        ('{"a": 1}', "a.b", ABSENT, '{"a": 1}'),
    ],
)
def test_edits_keep_the_style(before: str, key: str, new: Any, after: str) -> None:
    assert edited(before.encode(), tuple(key.split(".")), new).decode() == after


@pytest.mark.parametrize(
    ("data", "line", "column", "why"),
    [
        (b'{"a": 1 "b": 2}', 1, 9, "it is not valid JSON: expecting ',' delimiter"),
        (b'{\r\n  "a" 1}', 2, 7, "it is not valid JSON: expecting ':' delimiter"),
        (b'{"a": }', 1, 7, "it is not valid JSON: expecting value"),
        (
            b'{"a": 1 , \n}',
            1,
            9,
            "it is not valid JSON: illegal trailing comma before end of object",
        ),
        (
            b'{"a": [1,\n\n]}',
            1,
            9,
            "it is not valid JSON: illegal trailing comma before end of array",
        ),
        (b'{"a": [1, }', 1, 11, "it is not valid JSON: expecting value"),
        (
            b'{"a": 1,]',
            1,
            9,
            "it is not valid JSON: expecting property name enclosed in double quotes",
        ),
        (b'{"a": [,]}', 1, 8, "it is not valid JSON: expecting value"),
        (b'{"a": 01}', 1, 8, "it is not valid JSON: expecting ',' delimiter"),
        (b'{"a": "x', 1, 7, "it is not valid JSON: unterminated string"),
        (b'{"a": "\t"}', 1, 8, "it is not valid JSON: invalid control character"),
        (b'{"a": "\\x"}', 1, 8, "it is not valid JSON: invalid \\escape"),
        (b'{"a": 1}\n// no', 2, 1, "it is not valid JSON: extra data"),
        (b'{"a": 1} {}', 1, 10, "it is not valid JSON: extra data"),
        (b"nonsense", 1, 1, "it is not valid JSON: expecting value"),
        (b"\n []", 2, 2, "it is not a JSON object"),
        (b'\xef\xbb\xbf"nvidia"', 1, 1, "it is not a JSON object"),
        (b'{"a": 1,\n "a": 2}', 2, 2, 'it is ambiguous: the key "a" occurs twice in one object'),
        (
            b'{"a": 1, "\\u0061": 2}',
            1,
            10,
            'it is ambiguous: the key "\\u0061" occurs twice in one object',
        ),
        (
            b'[{"x": [{"b": 1, "b": 2}]}]',
            1,
            18,
            'it is ambiguous: the key "b" occurs twice in one object',
        ),
        (
            b'{"a": {"b": 1}, "c": {"b": 1}, "a": {}}',
            1,
            32,
            'it is ambiguous: the key "a" occurs twice in one object',
        ),
        (b'{"a":\n NaN}', 2, 2, "it is not valid JSON: NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', 1, 8, "it is not valid JSON: -Infinity is not a JSON number"),
        (
            b'{"a": 1e400}',
            1,
            7,
            "it is not valid JSON for the runtime: the number 1e400 is too large",
        ),
        (
            b'{"a": ' + b"9" * 5000 + b"}",
            1,
            7,
            "it is not valid JSON for the runtime: the number 99999999999999999999... is too large",
        ),
        (b'{\n"\xc3\xa9\xff": 1}', 2, 3, "it is not UTF-8 text (byte 0xff)"),
        (b"\xef\xbb\xbf\xff{}", 1, 1, "it is not UTF-8 text (byte 0xff)"),
        (b'{"a": "\xed\xa0\x80"}', 1, 8, "it is not UTF-8 text (byte 0xed)"),
        (b'{"a":' + b"[" * 100_000, 1, 105, "it is nested too deeply to be a configuration"),
        (b'{"a":' * 5000, 1, 501, "it is nested too deeply to be a configuration"),
    ],
)
def test_refusals_say_where(data: bytes, line: int, column: int, why: str) -> None:
    for read in (json_editor.parse, json_editor.tree):
        with pytest.raises(ConfigError) as caught:
            read(data, PATH)
        assert (caught.value.line, caught.value.column, caught.value.why) == (line, column, why)
        assert str(caught.value) == f"{PATH}:{line}:{column}: {why}"


def test_put_below_what_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        edited(b'{"features":\n ["cdi"]}', ("features", "cdi"), "x")
    assert str(caught.value) == f"{PATH}:2:2: cdi cannot be set: features is not an object"


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_the_deepest_nesting_that_is_read(start: str, end: str) -> None:
    data = ('{"top":' + start * 99 + "1" + end * 99 + "}").encode()
    assert edited(edited(data, ("b",), 1), ("b",), ABSENT) == data
    with pytest.raises(ConfigError, match="it is nested too deeply"):
        json_editor.parse(b'{"top":' + data + b"}", PATH)


def test_thirty_thousand_lines_and_one_long_string_of_quotes_take_linear_time() -> None:
    lines = [f'  "key-{n}": {{ "path": "/usr/bin/{n}", "n": [{n}, 1.5] }}' for n in range(30_000)]
    data = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    document = json_editor.put(json_editor.parse(data, PATH), ("runtimes",), NVIDIA)
    assert json_editor.drop(document, ("runtimes",)).encode() == data
    with pytest.raises(ConfigError):
        json_editor.parse(b'{"a": "' + b'\\"' * 500_000, PATH)
    # It takes 2 s on an idle machine, and would time out if it were quadratic.


# --- real files ---------------------------------------------------------------------------------

WANTS = [
    DesiredKey(path=PATH, key=("runtimes",), new=NVIDIA),
    DesiredKey(path=PATH, key=("default-runtime",), new="nvidia"),
    DesiredKey(path=PATH, key=("features", "cdi"), new=True),
]


def corpus() -> list[Any]:
    found = sorted(CORPUS.glob("*.json")) if CORPUS.is_dir() else []
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no corpus at {CORPUS}"))]
    return [pytest.param(path, id=path.name) for path in found]


@pytest.mark.parametrize("file", corpus())
def test_real_files_change_only_where_asked(file: Path) -> None:
    data = file.read_bytes()
    if file.name in BROKEN:
        with pytest.raises(ConfigError) as caught:
            edits.apply(json_editor, PATH, data, WANTS)
        assert caught.value.why == BROKEN[file.name]
        return
    wants = WANTS[:2] if file.name == "broken-wrongtype-features-array.json" else WANTS
    change = edits.apply(json_editor, PATH, data, wants)
    assert change is not None
    assert change.after is not None
    assert edits.apply(json_editor, PATH, change.after, wants) is None
    diff = list(difflib.ndiff(data.decode().splitlines(), change.after.decode().splitlines()))
    gone = [line for line in diff if line.startswith("- ")]
    before = json_editor.tree(data, PATH)
    expected = 1 if "default-runtime" in before and before["default-runtime"] != "nvidia" else 0
    # A line that gets a comma counts as gone; so does a line on which all the file stands.
    replaced = [line for line in gone if f"+ {line[2:]}," not in diff]
    assert len(replaced) <= expected + 1, "\n".join(diff)
    restored, stayed = edits.reverse(json_editor, PATH, change.after, change.edits)
    assert stayed == ()
    assert edits.differences(before, reference(restored)) in ([], [(("features",), ABSENT, {})])


@pytest.mark.parametrize(
    ("name", "added"),
    [
        (
            "moby-dev-crun-tabs.json",
            [
                "+\t\t},",
                '+\t\t"nvidia": {',
                '+\t\t\t"path": "/usr/bin/nvidia-container-runtime",',
                '+\t\t\t"args": []',
                "+\t},",
                '+\t"default-runtime": "nvidia",',
                '+\t"features": {',
                '+\t\t"cdi": true',
            ],
        ),
        (
            "kubespray-oneline.json",
            [
                '-{ "insecure-registries":["HOSTNAME:5000"] }',
                (
                    '+{ "insecure-registries":["HOSTNAME:5000"], "runtimes":{ "nvidia":'
                    '{ "path":"/usr/bin/nvidia-container-runtime", "args":[] } }, '
                    '"default-runtime":"nvidia", "features":{ "cdi":true } }'
                ),
            ],
        ),
        (
            "bottlerocket-nvidia.json",
            [
                '-  "default-runtime": "shimpei",',
                (
                    '-  "runtimes": { "shimpei": { "path": "shimpei" }, "nvidia": { "path":'
                    ' "nvidia-oci" } },'
                ),
                '-  "selinux-enabled": true',
                '+  "default-runtime": "nvidia",',
                (
                    '+  "runtimes": { "shimpei": { "path": "shimpei" }, "nvidia": '
                    '{ "path": "/usr/bin/nvidia-container-runtime", "args": [] } },'
                ),
                '+  "selinux-enabled": true,',
                '+  "features": { "cdi": true }',
            ],
        ),
    ],
)
def test_minimal_diffs(name: str, added: list[str]) -> None:
    file = CORPUS / name
    if not file.is_file():
        pytest.skip(f"no corpus at {CORPUS}")
    data = file.read_bytes()
    change = edits.apply(json_editor, PATH, data, WANTS)
    assert change is not None
    assert change.after is not None
    diff = difflib.unified_diff(
        data.decode().split("\n"), change.after.decode().split("\n"), n=0, lineterm=""
    )
    assert sorted(line for line in diff if line[:2] not in ("--", "++", "@@")) == sorted(added)
