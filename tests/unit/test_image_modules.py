"""Which modules the image gets, by the rules of deploy/image/reach.py, and as what bytecode."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import marshal
import random
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import image_modules

reach: Final = image_modules.REACH
bytecode: Final = image_modules.BYTECODE

# A library of modules that each import `wanted`, if what the case is about makes them do it.
LATE: Final = "def f():\n    import wanted\n"
CASES: Final[Mapping[str, tuple[str, str, bool]]] = {
    "a function that is not called": ("import lib", LATE, False),
    "a function that is called": ("import lib\nlib.f()", LATE, True),
    "a function that is taken by its name": ("from lib import f", LATE, False),
    "a function that is taken by its name and used": ("from lib import f\nf()", LATE, True),
    "by another name": ("from lib import f as g\ng()", LATE, True),
    "the module by another name": ("import lib as other\nother.f()", LATE, True),
    "a star": ("from lib import *\nf()", LATE, True),
    "a function of the program without a visible caller": (
        "def command():\n    import lib\n    lib.f()",
        LATE,
        True,
    ),
    "a function that another one calls": ("import lib\nlib.g()", f"{LATE}def g():\n    f()", True),
    "a function of the same name in another module": ("import lib, json\njson.f()", LATE, False),
    "a method by a value": (
        "import lib\nx = lib.C()\nx.m()",
        "class C:\n def m(s):\n  import wanted",
        True,
    ),
    "a method that nothing names": (
        "import lib\nlib.C()",
        "class C:\n def m(s):\n  import wanted",
        False,
    ),
    "a method that Python calls": (
        "import lib",
        "class C:\n def __enter__(s):\n  import wanted",
        True,
    ),
    "a value by the name of a module": (
        "import lib, json\ndef g(json):\n    json.f()",
        LATE,
        True,
    ),
    "a name in a string for getattr": ("import lib\ngetattr(lib.C(), 'f')", LATE, True),
    "the beginning of a name": (
        "import lib\ngetattr(lib, 'do_' + x)",
        "def do_x():\n import wanted",
        True,
    ),
    "the beginning in an f-string": (
        "import lib\ngetattr(lib, f'do_{x}')",
        "def do_x():\n import wanted",
        True,
    ),
    "a table of names": ("import lib", f"TABLE = {{'x': 'f'}}\n{LATE}", True),
    "the list of public names": ("import lib", f"__all__ = ['f']\n{LATE}", False),
    "an unknown decorator": ("import lib", f"@register\n{LATE}", True),
    "a decorator that is known": ("import lib", f"@property\n{LATE}", False),
    "a lambda": ("import lib", "x = lambda: f()\n" + LATE, True),
    "an inner function": (
        "import lib\nlib.g()",
        "def g():\n def f():\n  import wanted\n return f",
        True,
    ),
    "types": (
        "import lib",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import wanted",
        False,
    ),
    "another system": (
        "import lib",
        "import sys\nif sys.platform == 'win32':\n import wanted",
        False,
    ),
    "this system": ("import lib", "import sys\nif sys.platform == 'linux':\n import wanted", True),
    "any system but one": (
        "import lib",
        "import sys\nif not sys.platform.startswith('win'):\n import wanted",
        True,
    ),
    "an older version": (
        "import lib",
        "import sys\nif sys.version_info < (3, 5):\n import wanted",
        False,
    ),
    "a newer one": (
        "import lib",
        "import sys\nif sys.version_info >= (3, 5):\n import wanted",
        True,
    ),
    "a condition that is not known": ("import lib", "if x:\n pass\nelse:\n import wanted", True),
    "a library that is run as a program": (
        "import lib",
        "if __name__ == '__main__':\n import wanted",
        False,
    ),
    "the program": ("if __name__ == '__main__':\n import wanted", "", True),
    "a replacement that is not needed": (
        "import lib",
        "try:\n import sys\nexcept ImportError:\n import wanted",
        False,
    ),
    "a replacement that is": (
        "import lib",
        "try:\n import missing\nexcept ImportError:\n import wanted",
        True,
    ),
}


def found(directory: Path, files: Mapping[str, str], *roots: str) -> dict[str, str]:
    """Return what is reached in a library of files, besides the modules of the interpreter."""
    for name, text in files.items():
        path = directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    modules: dict[str, str] = reach.reached(reach.Library([directory]), roots)
    return modules


@pytest.mark.parametrize(("program", "lib", "is_wanted"), CASES.values(), ids=CASES)
def test_a_module_is_there_if_what_runs_can_import_it(
    tmp_path: Path, program: str, lib: str, *, is_wanted: bool
) -> None:
    files = {"program": program, "lib": lib, "wanted": "", "json": "def f(): pass"}
    assert ("wanted" in found(tmp_path, files, "program")) == is_wanted


def test_packages_and_relative_names(tmp_path: Path) -> None:
    files = {
        "program": "import a.b.c",
        "a/__init__": "from . import x",
        "a/b/__init__": "from ..y import z",
        "a/b/c": "from .d import e",
        "a/b/d": "from .. import w",
        "a/x": "",
        "a/y": "",
        "a/w": "",
        "a/unused": "",
    }
    modules = found(tmp_path, files, "program")
    assert {name for name in modules if name[0] == "a"} >= {
        "a", "a.b", "a.b.c", "a.b.d", "a.w", "a.x", "a.y",
    }  # fmt: skip
    assert "a.unused" not in modules
    assert modules["a.y"] == "a.b"


def test_c_code_has_its_modules_by_the_strings_in_it(tmp_path: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"ext{suffix}").write_bytes(b"\x7fELF\0_strptime\0no_module\0x_queue\0")
    files = {"program": "import ext", "_strptime": "", "queue": "", "_queue": ""}
    modules = found(tmp_path, files, "program")
    assert modules["_strptime"] == "ext"
    assert not {"_queue", "queue"} & modules.keys()


def test_what_functions_of_the_interpreter_import(tmp_path: Path) -> None:
    files = {"program": "import time\ntime.strptime('', '')", "_strptime": ""}
    assert "_strptime" in found(tmp_path, files, "program")


LEFT: Final = {
    "the program": {"program": "def f():\n import pydoc"},
    "a module": {"program": "import lib", "lib": "import pydoc"},
    "a module that takes it from a package": {
        "program": "import lib",
        "email/__init__": "",
        "email/policy": "",
        "lib": "from email import policy",
    },
}


@pytest.mark.parametrize("files", LEFT.values(), ids=LEFT)
def test_what_is_needed_cannot_be_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    importer = next(reversed(files))
    wanted = "email.policy" if "email/policy" in files else "pydoc"
    with pytest.raises(reach.ReachError) as caught:
        found(tmp_path, {"pydoc": "", **files}, "program")
    assert str(caught.value) == (
        f"{importer} imports {wanted}, which is left out: {reach.LEFT_OUT[wanted]}"
    )


OPTIONAL: Final = {
    "in a function": "def f():\n import pydoc\nf()",
    "with its absence handled": "try:\n import pydoc\nexcept ImportError:\n pydoc = None",
}


@pytest.mark.parametrize("lib", OPTIONAL.values(), ids=OPTIONAL)
def test_what_can_be_missing_is_left_out(tmp_path: Path, lib: str) -> None:
    files = {"program": "import lib", "lib": lib, "pydoc": ""}
    assert "pydoc" not in found(tmp_path, files, "program")


def test_the_same_files_give_the_same_modules_in_whatever_order(tmp_path: Path) -> None:
    roots = [f"m{number}" for number in range(9)]
    files = {name: f"import lib\nlib.f{name}()" for name in roots}
    files["lib"] = "".join(f"def f{name}():\n import x{name}\n" for name in roots)
    files |= {f"x{name}": "" for name in roots}
    first = found(tmp_path, files, *roots)
    assert {f"x{name}" for name in roots} <= first.keys()
    for _ in range(5):
        random.shuffle(roots)
        assert list(found(tmp_path, {}, *roots)) == list(first)


# --- bytecode -------------------------------------------------------------------------------------

SOURCE: Final = b'''"""A module."""
"""And one more line."""

from __future__ import annotations


class C:
    """A class."""

    def m(self):
        """A method."""
        "text"
        return 1 / 0


@print
def decorated():
    """A command."""


def empty():
    """Nothing else."""


async def later():
    """Later."""
    assert False, "checked"
'''


def functions(code: types.CodeType) -> dict[str, types.CodeType]:
    """Return the code of everything that is defined in code, by its qualified name."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return {each.co_qualname: each for each in inner} | {
        name: found for each in inner for name, found in functions(each).items()
    }


def test_bytecode_has_no_docstrings_but_those_of_classes_and_commands() -> None:
    content = bytecode.compiled(SOURCE, "/usr/lib/module.py")
    code = marshal.loads(content[16:])  # noqa: S302  # just made
    spaces: dict[str, Any] = {"print": lambda each: each, "__builtins__": __builtins__}
    exec(code, spaces)  # noqa: S102
    assert spaces.get("__doc__") is None
    assert spaces["C"].__doc__ == "A class."
    assert spaces["C"].m.__doc__ is None
    assert spaces["decorated"].__doc__ == "A command."
    assert spaces["empty"].__doc__ is None
    assert spaces["empty"]() is None
    with pytest.raises(ZeroDivisionError) as caught:
        spaces["C"]().m()
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("/usr/lib/module.py", 13)
    # Assertions are kept, unlike in `python -OO`.
    assert "checked" in functions(code)["later"].co_consts


def test_bytecode_is_named_by_the_hash_of_its_source_and_not_compared_with_it() -> None:
    content = bytecode.compiled(SOURCE, "/usr/lib/module.py")
    assert content[:4] == importlib.util.MAGIC_NUMBER
    assert content[4:8] == b"\x01\x00\x00\x00"
    assert content[8:16] == importlib.util.source_hash(SOURCE)
