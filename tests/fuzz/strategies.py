"""Hostile bytes: mutated real files, near-valid TOML and JSON, and noise."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from runtimes.edits import DesiredKey
from runtimes.model import ABSENT, Key
from tests.fuzz import laws, seeds

SCALE: Final = int(os.environ.get("FUZZ_SCALE", "1"))
"""How many times the examples of a test run; the long run sets it."""
SHRINK: Final = "FUZZ_SHRINK" in os.environ
"""Whether what is found is made small, which takes minutes."""
PATH: Final = "/etc/x"

Files = st.SearchStrategy[bytes]


def budget(examples: int) -> settings:
    """Return the settings of a property that may cost this many examples."""
    return settings(
        max_examples=examples * SCALE,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if SHRINK else [])],
        suppress_health_check=list(HealthCheck),
    )


# --- mutations ------------------------------------------------------------------------------------

_OPERATIONS: Final = (
    "insert", "insert", "replace", "replace", "delete", "repeat", "swap", "flip", "cut", "crlf",
    "lf", "bom", "many", "line", "line",
)  # fmt: skip
_NOISE: Final = (
    b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\r",
    b"\r\n", b"\n", b"\x0b", b"\x0c", b"\x1c", b"\x7f", "\x85".encode(), "\u2028".encode(),
    "\u00a0".encode(),
    "\u200f".encode(), "e\u0301".encode(), "\U0001f600".encode(), b" ", b"\t", b"=", b".", b",",
    b"#", b"\\", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"//", b"1" * 5000, b"a." * 300,
    b"[" * 300, b"9" * 20, b"1e999",
)  # fmt: skip
_TOML: Final = (
    b"[[", b"]]", b'"""', b"'''", b"= nan", b"= -inf", b"= 1979-05-27", b"= 07:32:00", b"= 0o7",
    b"= [[]]", b"\n[plugins]\n", b"\n[[plugins]]\n", b'\n[plugins."io.containerd.grpc.v1.cri"]\n',
    b"\nversion = 2\n", b"\nversion = true\n", b'\nimports = ["\\u0000"]\n',
    b'imports = ["a*", "/b/**/[", "/etc/containerd/*"]', b"\n[crio]\n", b"\ncrio = 1\n",
    b"\n[crio.runtime]\n", b"\ncrio.runtime.runtimes = 1\n", b" = {}",
    b" = { a.b = {}, c = [ { } ] }", b"nvidia", b"runc", b"runtimes", b"options", b"BinaryName",
    b"BINARYNAME", b"\ncontainer_annotations = 5\n", b"\ndefault_runtime_name = []\n", b'"a\\tb"',
    b"'a'.\"b\" . c = 1",
    b'"\\ud800" = 1\n', b'"" = ""\n', b"# \xe2\x80\xa8# x\n", b"\n[[t]]\n[t.u]\nv = 1\n",
    b"\n# no end", b"          [", b"\nruntime_type = 7\n", b"\nruntime_path = 7\n",
    b"\ndefault_runtime = 7\n",
)  # fmt: skip
_JSON: Final = (
    b"NaN", b"-Infinity", b"null", b"true", b"-0", b"1E5", b"01", b'"\\ud800"', b'"\\ud83d\\ude00"',
    b'"\\u0000"', b'{"runtimes": ', b', "runtimes": {}', b', "runtimes": 1',
    b', "runtimes": {"nvidia": null}', b', "default-runtime": 5', b', "features": []', b'"path"',
    b'"a":', b",}", b",]", b"/* c */", b'{"a": 1}', b'"args": {}', b'"\\u0061"', b'"a": 1, "a": 2',
    b"[[[[[[", b'{"":{"":{"":', b'"nvidia"', b'{"\\ud800": 1}',
)  # fmt: skip

_Step = tuple[str, int, int, bytes]


def _steps(tokens: Sequence[bytes], most: int) -> st.SearchStrategy[list[_Step]]:
    token = st.sampled_from(tuple(tokens) + _NOISE) | st.binary(max_size=3)
    step = st.tuples(
        st.sampled_from(_OPERATIONS),
        st.integers(0, 65535),
        st.integers(0, 40) | st.integers(0, 4000),
        token,
    )
    return st.lists(step, max_size=most)


def mutate(data: bytes, steps: Sequence[_Step]) -> bytes:
    """Return what some mutations make of bytes; each knows its place as a share of the whole."""
    for operation, share, size, token in steps:
        at = share * (len(data) + 1) >> 16
        data = _mutate(data, operation, at, size, token)[:200_000]
    return data


def _mutate(data: bytes, operation: str, at: int, size: int, token: bytes) -> bytes:
    before, piece, after = data[:at], data[at : at + size], data[at + size :]
    line = data.rfind(b"\n", 0, at) + 1
    results = {
        "insert": before + token + data[at:],
        "replace": before + token + after,
        "delete": before + after,
        "repeat": before + piece + piece + after,
        "swap": after + before,
        "flip": (
            before + bytes(byte ^ (1 << size % 8) for byte in data[at : at + 1]) + data[at + 1 :]
        ),
        "cut": before,
        "crlf": before + data[at:].replace(b"\n", b"\r\n", size),
        "lf": before + data[at:].replace(b"\r\n", b"\n", size),
        "bom": b"\xef\xbb\xbf" + data,
        "many": before + token * (size % 60) + data[at:],
        "line": data[:line] + token + data[line:],
    }
    return results[operation]


@st.composite
def mutated(
    draw: st.DrawFn, texts: Sequence[bytes], tokens: Sequence[bytes], most: int = 6
) -> bytes:
    """Return one of some texts, perhaps with the end of another one, mutated a few times."""
    data = draw(st.sampled_from(texts))
    if draw(st.integers(0, 9)) == 9:
        other = draw(st.sampled_from(texts))
        data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    return mutate(data, draw(_steps(tokens, most)))


_TEXTS: Final = st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
_RUBBISH: Final = st.binary(max_size=60) | _TEXTS

# --- near-valid TOML ------------------------------------------------------------------------------

NAMES: Final = (
    "version", "imports", "plugins", "cri", "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime", "containerd", "runtimes", "runc", "nvidia", "options",
    "BinaryName", "crio", "runtime", "a", "é", "", 'q"\\', "tab\t", "1", "\U0001f600",
)  # fmt: skip
_VALUES: Final = st.sampled_from(
    [
        "1", "-7", "0x1F", "1.5", "nan", "-inf", "1e400", "true", '""', '"a # b"', "'C:\\[x]'",
        '"\\""', '"\\u00e9"', "1979-05-27T07:32:00Z", "1979-05-27 07:32:00.999999", "07:32:00",
        "[]", '["a", "b"]',
        "[[1], [2]]", "[ 1,2 , ]", '[\n  "x", # one\n\n  "y",\n]', "[\n  # only a comment\n]",
        '"""\n[no.header]\nk = 1\n"""', "{}", "'''\n# none\n'''", '"""ends in a quote\\""""',
        "''''two quotes'''''", '"""\\\n   joined"""', "{ x = 1, y.z = 2 }",
        '{ "q.q" = [1, {r = "}"}] }', "[ { a = 1 }, { a = 2 } ]", "{ a = { b = { c = [ [ ] ] } } }",
        "        []", "0.10", "+1_000", "9223372036854775808", '"' + "x" * 300 + '"',
        # TOML 1.1
        "{ x = 1, }", "{\n  x = 1, # one\n\n  y.z = 2\n}", "{ # only a comment\n}",
        '"f\\xfcr \\e["', "07:32",
        '{\n\tx = { # }\n\t\ty = "}",\n\t},\n\tz = [ {\n} ]\n\t, "q.q" = 1,\n\t# end\n}',
        "1979-05-27 07:32Z",
    ]
)  # fmt: skip
_SPACES: Final = st.sampled_from(["", "", "", " ", "  ", "\t", "    "])
_ENDS: Final = st.sampled_from(
    ["\n", "\n", "\n", "\n", "\r\n", "  # why\n", " # \u2028 x\n", "\t\n", "\n\n", ""]
)
_GAPS: Final = st.sampled_from(
    [
        "",
        "",
        "",
        "\n",
        "# a comment\n",
        "  # k = 1\n",
        "\r\n",
        "\t\n",
        "# [x]\n\n",
        "# a\u2028# b\n",
    ]
)


def _spelled(name: str, style: int) -> str:
    plain = bool(name) and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    if plain and style < 8:
        return name
    if style == 9 and "'" not in name and "\t" not in name:
        return f"'{name}'"
    if style == 8:
        escape = "\\U{:08x}" if any(ord(c) > 255 for c in name) else "\\x{:02x}"
        return '"' + "".join(escape.format(ord(c)) for c in name) + '"'
    return json.dumps(name, ensure_ascii=False)


@st.composite
def _keys(draw: st.DrawFn, size: int) -> str:
    parts = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=size))
    dot = draw(st.sampled_from([".", ".", ".", " . "]))
    return dot.join(_spelled(part, draw(st.integers(0, 9))) for part in parts)


@st.composite
def _statements(draw: st.DrawFn) -> str:
    gap, indent, end = draw(_GAPS), draw(_SPACES), draw(_ENDS)
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2 | 3 | 4 | 5:
            equals = draw(st.sampled_from([" = ", "=", "  =\t", "= "]))
            return f"{gap}{indent}{draw(_keys(4))}{equals}{draw(_VALUES)}{end}"
        case 6 | 7 | 8:
            return f"{gap}{indent}[{draw(_SPACES)}{draw(_keys(6))}{draw(_SPACES)}]{end}"
        case _:
            return f"{gap}{indent}[[{draw(_keys(3))}]]{end}"


def _without_clashes(statements: Sequence[str]) -> str:
    """Return the statements that go together: what would make the text invalid is left out."""
    text = ""
    for statement in statements:
        try:
            laws.read_toml((text + statement).encode())
        except ValueError:
            continue
        text += statement
    return text


@st.composite
def toml_grammar(draw: st.DrawFn) -> bytes:
    """Return TOML that is mostly valid, in any order and style."""
    statements = draw(st.lists(_statements(), max_size=12))
    careless = draw(st.integers(0, 5)) == 5
    text = "".join(statements) if careless else _without_clashes(statements)
    text += draw(_GAPS)
    if draw(st.integers(0, 5)) == 0:
        text = "\ufeff" + text
    if draw(st.integers(0, 3)) == 0:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return text.encode()


# --- near-valid JSON ------------------------------------------------------------------------------

_JSON_NAMES: Final = (
    "runtimes", "nvidia", "default-runtime", "features", "cdi", "path", "args", "a", "", "é", 'q"',
    "\\", "\ud800",
)  # fmt: skip
_SCALARS: Final = st.sampled_from(
    ["0", "-0", "7", "1e3", "1.0", "0.10", "1E+2", "9007199254740993", "1" * 400, "1e400", "true",
     "null", '""', '"x"', '"\\ud800"', '"\\u0000"', '"é"', '"{[,:]}"', '"\\""', '"nvidia"',
     '"' + "x" * 300 + '"'],
)  # fmt: skip
_BLANKS: Final = st.sampled_from(["", "", "", " ", "\n", "\n  ", "\r\n\t", "  "])


@st.composite
def _objects(draw: st.DrawFn, below: st.SearchStrategy[str]) -> str:
    opening, closing = draw(st.sampled_from([("{", "}"), ("{", "}"), ("{", "}"), ("[", "]")]))
    blank, gap = draw(_BLANKS), draw(_BLANKS)
    count = draw(st.integers(0, 4))
    names = draw(st.permutations(_JSON_NAMES))[:count]
    colon = draw(st.sampled_from([": ", ":", " : ", ":\n"]))
    members = [
        (f"{json.dumps(name)}{colon}" if opening == "{" else "") + draw(below | _SCALARS)
        for name in names
    ]
    return opening + blank + f",{gap}".join(members) + draw(st.just(blank) | _BLANKS) + closing


_VALUES_OF_JSON: Final = st.recursive(_SCALARS, _objects, max_leaves=12)


@st.composite
def json_grammar(draw: st.DrawFn) -> bytes:
    """Return JSON that is mostly valid and mostly an object."""
    top = _objects(_VALUES_OF_JSON) if draw(st.integers(0, 9)) else _VALUES_OF_JSON
    text = draw(_BLANKS) + draw(top) + draw(_BLANKS)
    return (b"\xef\xbb\xbf" if draw(st.integers(0, 9)) == 9 else b"") + text.encode()


def _any(real: Sequence[bytes], tokens: Sequence[bytes], grammar: Files) -> Files:
    near = st.tuples(grammar, _steps(tokens, 2)).map(lambda pair: mutate(*pair))
    return st.one_of(mutated(real, tokens), mutated(real, tokens, 2), grammar, near, _RUBBISH)


TOML: Final[Files] = _any(seeds.TOML_FILES, _TOML, toml_grammar())
JSON: Final[Files] = _any(seeds.JSON_FILES, _JSON, json_grammar())
CONTAINERD: Final[Files] = _any(seeds.CONTAINERD_FILES, _TOML, toml_grammar())
CRIO: Final[Files] = _any(seeds.CRIO_FILES, _TOML, toml_grammar())
DOCKER: Final[Files] = _any(seeds.DOCKER_FILES, _JSON, json_grammar())
HOOKS: Final[Files] = _any((seeds.HOOK,), _JSON, json_grammar())
ANY_JSON: Final = JSON.map(lambda data: data.decode(errors="replace"))

# --- trees ----------------------------------------------------------------------------------------

_ODD: Final[st.SearchStrategy[Any]] = st.sampled_from(
    [None, True, False, 0, -1, 10**30, 1.5, float("inf"), float("nan"), "", "\0", "\ud800", "..",
     "a\nb", [],
     {}, [""], [[]], {"a": None}, ["\0"], "x" * 300, "9" * 400, 10**400]
)  # fmt: skip


@st.composite
def altered(draw: st.DrawFn, texts: Sequence[bytes]) -> bytes:
    """Return a JSON text with some values replaced: it can be read, and means something odd."""
    tree = json.loads(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(1, 3))):
        holder, name = draw(st.sampled_from(list(_places(tree)) or [([None], 0)]))
        # It is changed in turn, perhaps.
        holder[name] = copy.deepcopy(draw(_ODD))
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every member and item of a tree with what holds it."""
    names = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for name in list(names):
        yield tree, name
        yield from _places(tree[name])


# --- repetitions ----------------------------------------------------------------------------------

Parts = tuple[bytes, bytes, bytes]


def _units(
    real: Sequence[bytes], tokens: Sequence[bytes], numbered: Sequence[bytes]
) -> st.SearchStrategy[Parts]:
    """Return what stands before, again and again (with its number for `@`), and behind."""
    lines = sorted({line for data in real for line in data.splitlines(keepends=True)})
    piece = (
        st.sampled_from(tuple(tokens) + _NOISE[:-5])
        | st.sampled_from(lines)
        | st.binary(max_size=2)
    )
    edge = st.lists(piece, max_size=2).map(b"".join)
    plain = st.lists(piece, min_size=1, max_size=3).map(b"".join)
    named = st.lists(st.sampled_from(numbered), min_size=1, max_size=3).map(b"".join)
    unit = st.one_of(plain, named, named).map(lambda unit: unit[:200])
    return st.one_of(
        st.tuples(edge, unit, edge), st.tuples(st.sampled_from(real), named, st.just(b""))
    )


_HANDLERS: Final = b'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.'
_NUMBERED_TOML: Final = (
    b"k@ = 1\n", b"[t@]\n", b"[[t@]]\n", b"[" + _HANDLERS + b"nvidia.k@]\n", b"k@.l@ = {a = [1]}\n",
    b"  # @\n", _HANDLERS + b"nvidia.k@ = 1\n", b"'@'.\"@\" = '''@\n'''\n", b"[a.b@.c]\nd = [[]]\n",
    b'"\\u00e9@" = ""\n',
)  # fmt: skip
_NUMBERED_JSON: Final = (
    b'"k@": 1,', b'"k@": {},\n', b'"k@": {"a": [1, {}]},', b'"\\u0061@": "",', b' "@" : -0.5 ,\r\n',
    b"\n", b" ",
)  # fmt: skip


def unit_of_toml() -> st.SearchStrategy[Parts]:
    """Return a repetition in TOML."""
    return _units(seeds.TOML_FILES, _TOML, _NUMBERED_TOML)


def unit_of_json() -> st.SearchStrategy[Parts]:
    """Return a repetition in JSON, mostly in an object that it leaves open."""
    units = _units(seeds.JSON_FILES, _JSON, _NUMBERED_JSON)
    inside = units.map(lambda parts: (b"{", parts[1], b'"z": 1}'))
    deeper = units.map(lambda parts: (b'{"runtimes": {"nvidia": {', parts[1], b'"z": 1}}}'))
    return st.one_of(units, inside, deeper)


# --- wishes ---------------------------------------------------------------------------------------


def _leaves(*more: Any) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(
            [1, 0, -5, True, "x", "", 'q"\n\\', "é\u2028", ["a"], [], ["a", "b"], 2.5, *more]
        ),
        st.text(st.characters(codec="utf-8"), max_size=5),
    )


def _trees(
    leaves: st.SearchStrategy[Any], names: Sequence[str]
) -> st.SearchStrategy[dict[str, Any]]:
    name = st.sampled_from(tuple(names))
    # An empty table says nothing in TOML, so nobody wishes for one.
    table = st.dictionaries(name, leaves, min_size=1, max_size=3)
    return st.dictionaries(name, leaves | table, min_size=1, max_size=3)


Work = tuple[bytes, list[DesiredKey]]
_TOML_LEAVES: Final = _leaves()
_JSON_LEAVES: Final = _leaves(None, "\ud800")


@st.composite
def edited_toml(draw: st.DrawFn) -> Work:
    """Return a file and what is wanted of it."""
    data = draw(TOML)
    return data, _wishes(draw, _tree(laws.read_toml, data), NAMES, _TOML_LEAVES)


_INSIDE: Final = ("a", "b", '"c"', "d.e", "d.f", "'g'", '"\\x69"')
_BETWEEN: Final = st.sampled_from(["", "", "", " ", "\n", "\n  ", " # c, } x\n", "\n\n", "\r\n"])
_FLAT: Final = st.sampled_from(
    ["1", "07:32", '"\\xfc}"', "'a}'", '"x,#"', "[]", "[\n1, # ]\n]", '["}", ]', '"""a\n}"""']
)


@st.composite
def _inline_tables(draw: st.DrawFn, below: st.SearchStrategy[str]) -> str:
    """Return an inline table of TOML 1.1, with newlines and comments wherever they are allowed."""
    names = draw(st.lists(st.sampled_from(_INSIDE), max_size=4, unique=True))
    members = [f"{draw(_BETWEEN)}{name} = {draw(below)}{draw(_BETWEEN)}" for name in names]
    end = draw(st.sampled_from(["", ","])) if members else ""
    return "{" + ",".join(members) + end + draw(_BETWEEN) + "}"


_INLINE: Final = _inline_tables(st.recursive(_FLAT, _inline_tables, max_leaves=8))


@st.composite
def edited_inline(draw: st.DrawFn) -> Work:
    """Return a file with an inline table of TOML 1.1, and what is wanted of it."""
    data = f"version = 2\nk = {draw(_INLINE)} # end\n[last]\na = 1\n".encode()
    return data, _wishes(
        draw, _tree(laws.read_toml, data), ("a", "b", "c", "d", "e", "i", "z"), _TOML_LEAVES
    )


@st.composite
def edited_json(draw: st.DrawFn) -> Work:
    """Return a file and what is wanted of it."""
    data = draw(JSON)
    return data, _wishes(draw, _tree(laws.read_json, data), _JSON_NAMES, _JSON_LEAVES)


def _tree(read: Callable[[bytes], dict[str, Any]], data: bytes) -> dict[str, Any]:
    try:
        return read(data)
    except (ValueError, RecursionError):
        return {}


def _wishes(
    draw: st.DrawFn, tree: dict[str, Any], names: Sequence[str], leaves: st.SearchStrategy[Any]
) -> list[DesiredKey]:
    """Return wishes about keys of a tree and about others, none of them above another."""
    there = list(islice(_all_keys(tree), 300))
    wanted: list[DesiredKey] = []
    for _ in range(draw(st.integers(1, 4))):
        key = draw(_key(there, names))
        if any(key[: len(w.key)] == w.key or w.key[: len(key)] == key for w in wanted):
            continue
        new = draw(st.one_of(leaves, _trees(leaves, names), st.just(ABSENT)))
        wanted.append(DesiredKey(path=PATH, key=key, new=new, exact=draw(st.booleans())))
    return wanted


def _key(there: Sequence[Key], names: Sequence[str]) -> st.SearchStrategy[Key]:
    """Return a key that is there, or a sibling of one, or any."""
    name = st.sampled_from(tuple(names))
    of_names: st.SearchStrategy[Key] = st.lists(name, min_size=1, max_size=5).map(tuple)
    if not there:
        return of_names
    known = st.sampled_from(there)
    siblings = st.builds(lambda key, last: (*key[:-1], last), known, name)
    return st.one_of(of_names, of_names, known, known, siblings)


def _all_keys(tree: dict[str, Any], prefix: Key = ()) -> Iterator[Key]:
    for name, item in tree.items():
        yield (*prefix, name)
        if isinstance(item, dict) and len(prefix) < 20:
            yield from _all_keys(item, (*prefix, name))
