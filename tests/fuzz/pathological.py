"""Inputs that are long in one way: their time and memory must grow no faster than their length.

Run as a program it measures, in a process of its own, those that are named on its standard input.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from runtimes import edits, globs
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import json_editor, toml_editor
from runtimes.model import ABSENT, Ownership
from tests.fuzz.strategies import PATH
from toolkit.runtime.client import protobuf

Make = Callable[[int], bytes]
Work = Callable[[bytes], object]
_HANDLERS: Final = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
_OURS: Final = f"{_HANDLERS}.nvidia"
_KEY: Final = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes", "nvidia")
_MOST_MEMORY: Final = 4 << 30
"""In bytes of address space: what takes more is a finding and shall not take the machine."""


def _numbered(text: str) -> Make:
    """Return a maker of a text that is repeated with another number in place of each `@`."""
    return lambda n: "".join(text.replace("@", str(i)) for i in range(n)).encode()


def _around(before: str, unit: str, after: str = "") -> Make:
    return lambda n: (before + unit * n + after).encode()


def _nested(opening: str, middle: str, closing: str) -> Make:
    return lambda n: (opening * n + middle + closing * n).encode()


TOML: Final[Mapping[str, Make]] = {
    "open brackets": _around("a = ", "["),
    "brackets": lambda n: b"a = " + b"[" * n + b"]" * n,
    "header brackets": _around("", "["),
    "open inline tables": _around("a = ", "{ a = "),
    "inline tables": lambda n: b"a = " + b"{a=" * n + b"1" + b"}" * n,
    "dots": _around("a", ".a", " = 1\n"),
    "dots and spaces": _around("a", " . a", " = 1\n"),
    "dots of quoted": _around('"a"', '."a"', " = 1\n"),
    "dots in a header": _around("[a", ".a", "]\n"),
    "dots in an array's header": _around("[[a", ".a", "]]\n"),
    "dots in an inline table": _around("a = { b = 1, a", ".a", " = 1 }\n"),
    "short dots in deep headers": _numbered("[" + "a." * 60 + "t@]\nk = 1\n"),
    "comments": _around("", "# c\n"),
    "comments above a header": _around("", "# c\n", "[a]\n"),
    "a long comment": _around("#", "x"),
    "blank lines": _around("", "\n"),
    "blank lines of Windows": _around("", "\r\n"),
    "spaces before a key": _around("", " ", "a = 1\n"),
    "spaces before an array": _around("a = ", " ", "[1]\n"),
    "spaces before a string": _around("a = ", " ", '"""x"""\n'),
    "spaces behind a number": _around("a = 1", " ", "# c\n"),
    "spaces in an array": _around("a = [", " ", "]\n"),
    "spaces alone": _around("", " "),
    "carriage returns": _around("a = 1", "\r", "\n"),
    "keys": _numbered("k@ = 1\n"),
    "keys of tables": _numbered("a.b.k@ = 1\n"),
    "tables": _numbered("[t@]\n"),
    "tables of tables": _numbered("[t.u@]\nk = 1\n\n"),
    "arrays of tables": _around("", "[[t]]\n"),
    "a long string": _around('a = "', "x", '"\n'),
    "escapes": _around('a = "', "\\n", '"\n'),
    "open string": _around('a = "', "\\\\"),
    "open strings": _around("a = [", '"", '),
    "many lines": _around('a = """', "x\n", '"""\n'),
    "quotes in many lines": _around('a = """', '""x', '"""\n'),
    "open many lines": _around('a = """', '"x'),
    "literal quotes": _around("a = '''", "''x", "'''\n"),
    "a long key": _around("", "a", " = 1\n"),
    "a long quoted key": _around('"', "\\n", '" = 1\n'),
    "imports": _around("imports = [", '"/x/y.toml", ', "]\n"),
    "imports with comments": _around("imports = [\n", '"/x", # c\n', "]\n"),
    "digits": _around("a = ", "1", "\n"),
    "hexadecimal digits": _around("a = 0x", "f", "\n"),
    "digits of a fraction": _around("a = 0.", "1", "\n"),
    "underscores": _around("a = 1", "_1", "\n"),
    "keys of our handler": lambda n: f"[{_OURS}]\n".encode() + _numbered("k@ = 1\n")(n),
    "dotted keys of our handler": _numbered(f"{_OURS}.k@ = 1\n"),
    "tables of our handler": _numbered(f"[{_OURS}.k@]\n"),
    "inline keys of our handler": (
        lambda n: f"{_OURS} = {{a=1".encode() + _numbered(", k@=1")(n) + b"}\n"
    ),
    "handlers": _numbered(f'[{_HANDLERS}.h@]\nruntime_type = "io.containerd.runc.v2"\n'),
    "inline handlers": lambda n: (
        f"{_HANDLERS} = {{ a = 1".encode() + _numbered(', h@ = { t = "x" }')(n) + b"}\n"
    ),
    "no UTF-8 behind lines": lambda n: b"a\n" * n + b"\xff",
    "unusual ends of lines": _around("#", "\u2028# x", "\n[a]\n"),
}
JSON: Final[Mapping[str, Make]] = {
    "open brackets": _around('{"a": ', "["),
    "open objects": _around("", '{"a":'),
    "objects": _nested('{"a":', "1", "}"),
    "members": lambda n: b'{"a": 1' + _numbered(', "k@": 1')(n) + b"}",
    "members of members": lambda n: b'{"a": 1' + _numbered(', "k@": {"a": {}}')(n) + b"}",
    "members on lines": lambda n: b'{\n  "a": 1' + _numbered(',\n  "k@": 1')(n) + b"\n}\n",
    "members of our handler": lambda n: (
        b'{"runtimes": {"nvidia": {"a": 1' + _numbered(', "k@": 1')(n) + b"}}}"
    ),
    "handlers": (
        lambda n: b'{"runtimes": {"a": {}' + _numbered(', "h@": {"path": "/h@"}')(n) + b"}}"
    ),
    "items": _around('{"a": [1', ", 1", "]}"),
    "blanks": _around("{", " ", "}"),
    "blank lines": _around('{"a": 1', "\n", "}"),
    "blank lines between": _around('{"a": 1,', "\n", '"b": 1}'),
    "blanks before a colon": _around('{"a"', " ", ": 1}"),
    "blanks in front": _around("", " \n", "{}"),
    "a long string": _around('{"a": "', "x", '"}'),
    "escapes": _around('{"a": "', "\\n", '"}'),
    "backslashes": _around('{"a": "', "\\"),
    "open strings": _around("{", '"'),
    "surrogates": _around('{"a": "', "\\ud800", '"}'),
    "digits": _around('{"a": ', "1", "}"),
    "a fraction": _around('{"a": 0.', "1", "}"),
    "a great exponent": _around('{"a": 1e', "1", "}"),
    "commas": _around("{", ","),
    "colons": _around('{"a"', ":"),
    "one key again": _around('{"a": 1', ', "a": 1', "}"),
    "no UTF-8 behind lines": lambda n: b"{\n" * n + b"\xff",
    "rubbish": _around("", "x"),
}
WIRE: Final[Mapping[str, Make]] = {
    "small numbers": lambda n: b"\x08\x01" * n,
    "many fields": lambda n: b"".join(protobuf.encode([(i + 1, i)]) for i in range(n)),
    "empty messages": lambda n: b"\x0a\x00" * n,
    "a long message": lambda n: protobuf.encode([(1, b"x" * n)]),
    "long numbers": lambda n: b"\x08" + b"\xff" * n,
}
PATTERNS: Final[Mapping[str, Make]] = {
    "stars": _around("/etc/containerd/conf.d/", "*", "x"),
    "stars and letters": _around("/etc/containerd/conf.d/", "*9", "*x"),
    "open classes": _around("/etc/*", "["),
    "classes": _around("/etc/*", "[a-z]"),
    "backslashes": _around("*", "\\"),
    "question marks": _around("*", "?"),
    "nested classes": _around("*[", "[:", "]"),
}

_TOML_WANTS: Final = (
    DesiredKey(path=PATH, key=("version",), new=2),
    DesiredKey(
        path=PATH, key=_KEY, new={"runtime_type": "t", "options": {"BinaryName": "/x"}}, exact=True
    ),
    DesiredKey(path=PATH, key=("imports",), new=["/a/*.toml"]),
    DesiredKey(path=PATH, key=("plugins", "cri", "gone"), new=ABSENT),
)
_JSON_WANTS: Final = (
    DesiredKey(path=PATH, key=("runtimes", "nvidia"), new={"path": "/x", "args": []}, exact=True),
    DesiredKey(path=PATH, key=("default-runtime",), new="nvidia"),
    DesiredKey(path=PATH, key=("features",), new=ABSENT),
)


def _edited(form: edits.Format, wants: tuple[DesiredKey, ...], data: bytes) -> None:
    """Edit a file and, as if somebody had edited it since, take that back."""
    try:
        change = edits.apply(form, PATH, data, wants)
        if change is not None and change.after is not None:
            owned = Ownership(path=PATH, original=data, written=(), edits=change.edits)
            edits.without(form, owned, change.after)
    except ConfigError:
        return


def _decoded(data: bytes) -> None:
    try:
        message = protobuf.decode(data)
        message.messages(1)
    except protobuf.Malformed:
        return


def _matched(pattern: bytes) -> None:
    globs.expression.cache_clear()
    globs.matches(pattern.decode(), "/etc/containerd/conf.d/" + "9" * 200 + "-nvidia.toml")


KINDS: Final[Mapping[str, tuple[Mapping[str, Make], Work]]] = {
    "TOML": (TOML, lambda data: _edited(toml_editor, _TOML_WANTS, data)),
    "JSON": (JSON, lambda data: _edited(json_editor, _JSON_WANTS, data)),
    "wire": (WIRE, _decoded),
    "patterns": (PATTERNS, _matched),
}


def sized(make: Make, size: int) -> bytes:
    """Return an input of about a size in bytes."""
    unit = max(1, len(make(65)) - len(make(1))) / 64
    return make(max(1, int(size / unit)))


def measure(kind: str, name: str, size: int) -> dict[str, Any]:
    """Do the work for one input; return its size, processor seconds and maximum memory."""
    cases, work = KINDS[kind]
    data = sized(cases[name], size)
    before = _peak(anew=True)
    started = time.process_time()
    work(data)
    spent = time.process_time() - started
    return {
        "kind": kind,
        "name": name,
        "size": len(data),
        "seconds": spent,
        "kib": _peak(anew=False) - before,
    }


def _peak(*, anew: bool) -> int:
    """Return the most memory that this process had since it was counted anew, in KiB."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def main() -> None:
    """Measure the cases on the standard input, a line of JSON each, and print what they took."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    for line in sys.stdin:
        kind, name, size = json.loads(line)
        print(json.dumps(measure(kind, name, size)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
