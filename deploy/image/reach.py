"""Find the modules that a program can import: what its image needs of a standard library.

A module that is imported is there in whole, but not all of it runs: most of what the standard
library imports inside functions belongs to functions that nothing here calls. So this goes by
functions. These run: the bodies of imported modules and of their classes, every function of the
program itself, methods that Python calls (`__enter__`), and functions that something else which
runs mentions. In what is mentioned,

- a plain name means what its module defines or imports by that name;
- `module.name` means that of the module;
- any other attribute means every function and method with that name, in all imported modules;
- a string means the module's own functions with that name (tables of methods), and the beginning
  of a computed name (`"do_" + command`) every function that begins so;
- a decorator that is not known to leave the use of a function as it is means that function.

Branches for other systems and versions do not run, nor do replacements for a module that is there.
What extension modules import is found by the strings in them. What only the C code of the
interpreter itself mentions, and what is left out although something mentions it, is in the tables
below.

Nothing of the program is executed, and the same files give the same result. The interpreter that
runs this is the one whose modules these are: it is asked for its version and its own modules.
"""

from __future__ import annotations

import ast
import importlib.machinery
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

INTERPRETER: Final = (
    "codecs",
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.idna",  # a socket's address
    "encodings.latin_1",
    "encodings.utf_8",
    "encodings.utf_8_sig",  # site: a .pth file
    "importlib.machinery",
    "io",
    "os",
    "runpy",  # -m
    "site",
    "threading",  # the end of the process
    "traceback",  # an exception that ends the program
    "warnings",
)
"""What the interpreter imports before, around and after a program."""

CALLED_BY_C: Final = frozenset({
    "_bootstrap", "_print_exception_bltin", "_run_module_as_main", "_showwarnmsg", "_shutdown",
    "_strptime_datetime_date", "_strptime_datetime_datetime", "_strptime_datetime_time",
    "_strptime_time", "close", "create_module", "decode", "encode", "exec_module", "fileno",
    "find_spec", "flush", "get_code", "get_data", "get_filename", "get_source", "getregentry",
    "getstate", "isatty", "read", "readable", "readinto", "readline", "reset", "seek", "seekable",
    "setstate", "tell", "truncate", "writable", "write",
})  # fmt: skip
"""Functions and methods that C code calls by name: of files, codecs, loaders and threads."""

IMPORTED_BY_C: Final[Mapping[str, str]] = {
    "set_int_max_str_digits": "_pylong",
    "strptime": "_strptime",
}
"""What functions of the interpreter's own modules import, by their names."""

LEFT_OUT: Final[Mapping[str, str]] = {
    "_pydecimal": "formats what decimal.Decimal refuses",
    "_pyrepl": "the interactive interpreter",
    "_uuid": "identifiers made of a time; its absence is handled",
    "argparse": "modules of the standard library that are run as programs",
    "bz2": "archives that are compressed so; its absence is handled",
    "compression.zstd": "as bz2",
    "concurrent.futures.interpreter": "as concurrent.futures.process",
    "concurrent.futures.process": "processes; threads are used",
    "concurrent.interpreters": "as concurrent.futures.process",
    "doctest": "as unittest",
    "email.policy": "mail; HTTP's headers are email.message.Message, of the older policy",
    "ftplib": "URLs of other kinds than HTTP",
    "getopt": "as argparse",
    "getpass": "passwords that are asked for",
    "http.cookiejar": "cookies of HTTP",
    "importlib.metadata": "the version of a program that does not give its own",
    "importlib.readers": "files of packages; no package has any",
    "lzma": "as bz2",
    "multiprocessing": "as concurrent.futures.process",
    "netrc": "as ftplib",
    "pdb": "breakpoint()",
    "pickle": "objects that are sent to other processes",
    "plistlib": "other systems",
    "pprint": "as argparse",
    "pydoc": "as _pyrepl",
    "readline": "as _pyrepl",
    "rlcompleter": "as _pyrepl",
    "sitecustomize": "what the base adds to each start; its absence is handled",
    "statistics": "random, as argparse",
    "tracemalloc": "where a file was opened that a warning is about; its absence is handled",
    "unittest": "modules that are run as a test of themselves",
    "usercustomize": "as sitecustomize",
    "webbrowser": "as getpass: click.launch",
    "xml": "other systems",
    "zipfile": "archives other than tar",
}
"""Modules, with all below them, for functions that do not run, though their names are mentioned.

It is an error if the program itself, or a module while it is imported, needs one of them: only an
import within a function of another's code, or one whose failure is handled, can be left out.
"""

CONSTANTS: Final[Mapping[str, bool]] = {
    "TYPE_CHECKING": False,
    # psutil's and click's names of systems
    "AIX": False, "BSD": False, "FREEBSD": False, "LINUX": True, "MACOS": False, "NETBSD": False,
    "OPENBSD": False, "OSX": False, "POSIX": True, "SUNOS": False, "WIN": False, "WINDOWS": False,
}  # fmt: skip
"""Names of conditions that are known."""

_WRAPPERS: Final = frozenset({
    "abstractmethod", "asynccontextmanager", "cache", "cached_property", "classmethod",
    "contextmanager", "deleter", "final", "getter", "lru_cache", "overload", "override", "property",
    "recursive_repr", "setter", "singledispatch", "staticmethod", "wraps", "_tp_cache",
    "no_type_check", "wrap_exceptions", "memoize", "memoize_when_activated", "deprecated",
    "_deprecated",
})  # fmt: skip
_BY_NAME: Final = frozenset({"attrgetter", "getattr", "hasattr", "methodcaller", "setattr"})
_PREFIX: Final = re.compile(r"[A-Za-z_]\w*_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A statement that imports a module: by its name, relative to the place `level` above."""

    name: str
    parts: tuple[tuple[str, str], ...] = ()
    """The names that are taken from it, each with the name that it gets."""
    level: int = 0
    is_optional: bool = False
    """Whether its failure is handled."""


class ReachError(Exception):
    """Something is left out that is needed."""


@dataclass(slots=True, eq=False)
class Unit:
    """What runs together: a function, or what a module does while it is imported."""

    imports: list[Import] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    members: set[tuple[str, str]] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    prefixes: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Module:
    """A module of Python source: its body, its functions by name, and what names in it mean."""

    name: str
    is_package: bool
    body: Unit = field(default_factory=Unit)
    functions: dict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))
    bindings: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    stored: set[str] = field(default_factory=set)

    def units(self) -> Iterator[Unit]:
        """Yield the body and all functions."""
        yield self.body
        for units in self.functions.values():
            yield from units

    def absolute(self, name: str, level: int) -> str:
        """Return the whole name of a module that this one imports."""
        if level == 0:
            return name
        parts = self.name.split(".")
        keep = len(parts) - level + (1 if self.is_package else 0)
        return ".".join([*parts[:keep], *([name] if name else [])])


class Library:
    """The modules that directories have, and those of the interpreter."""

    def __init__(self, directories: Iterable[Path]) -> None:
        """Look for modules in directories, the first one first."""
        self._directories = [str(path) for path in directories]
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Return where a module is; None where there is none of that name."""
        if name not in self._specs:
            self._specs[name] = self._find(name)
        return self._specs[name]

    def file(self, name: str) -> Path | None:
        """Return the file of a module; None if it is the interpreter's own or has none."""
        found = self.spec(name)
        return Path(found.origin) if found and found.has_location and found.origin else None

    def _find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        if name in sys.builtin_module_names:
            return importlib.machinery.BuiltinImporter.find_spec(name)
        parent = name.rpartition(".")[0]
        above = self.spec(parent) if parent else None
        where = (above.submodule_search_locations if above else None) if parent else None
        if parent and not where:
            return None
        return importlib.machinery.PathFinder.find_spec(name, where or self._directories)


def reached(library: Library, roots: Iterable[str]) -> dict[str, str]:
    """Return every module that is imported, each with one that imports it.

    `roots` are the modules of the program itself, of which every function runs.
    """
    walk = _Walk(library, frozenset(roots))
    walk.run()
    return dict(sorted(walk.reasons.items()))


class _Walk:
    """What is known so far to be imported and to run, and what is still to be looked at."""

    def __init__(self, library: Library, roots: frozenset[str]) -> None:
        self.library = library
        self.roots = roots
        self.reasons: dict[str, str] = {}
        self._modules: dict[str, Module] = {}
        self._named: set[str] = set(CALLED_BY_C)
        self._prefixes: set[str] = set()
        self._functions: dict[str, list[tuple[Module, Unit]]] = defaultdict(list)
        self._started: set[int] = set()
        self._todo: list[tuple[Module, Unit]] = []

    def run(self) -> None:
        for name in (*INTERPRETER, *sorted(self.roots)):
            self._take(name, "")
        while self._todo:
            self._execute(*self._todo.pop())

    def _take(self, name: str, reason: str) -> bool:
        """Count a module, and the packages above it, as imported; return whether there is one."""
        if left_out(name) or self.library.spec(name) is None:
            return False
        for each in packages(name):
            if each not in self.reasons:
                self.reasons[each] = reason
                self._load(each)
        return True

    def _load(self, name: str) -> None:
        file = self.library.file(name)
        if file is None:
            return
        if file.suffix != ".py":
            for each in strings(file, self.library):
                self._take(each, name)
            return
        module = self._modules[name] = parse(
            name, file, self.library, is_program=name in self.roots
        )
        self._start(module, module.body)
        for called, units in module.functions.items():
            for unit in units:
                self._functions[called].append((module, unit))
                if name in self.roots or self._is_named(called):
                    self._start(module, unit)

    def _is_named(self, name: str) -> bool:
        return (
            name in self._named
            or (name.startswith("__") and name.endswith("__"))
            or name.startswith(tuple(self._prefixes))
        )

    def _start(self, module: Module, unit: Unit) -> None:
        if id(unit) not in self._started:
            self._started.add(id(unit))
            self._todo.append((module, unit))

    def _execute(self, module: Module, unit: Unit) -> None:
        for each in unit.imports:
            self._import(module, unit, each)
        for name in unit.names:
            self._mention(module, name, set())
        for name in (unit.texts | unit.kept) & module.functions.keys():
            self._mention(module, name, set())
        for base, name in unit.members:
            self._take_for_c(name, module)
            self._mention_member(module, base, name)
        for name in unit.attributes:
            self._take_for_c(name, module)
            self._mention_anywhere(name)
        for prefix in unit.prefixes - self._prefixes:
            self._prefixes.add(prefix)
            for name in [each for each in self._functions if each.startswith(prefix)]:
                self._mention_anywhere(name)

    def _import(self, module: Module, unit: Unit, wanted: Import) -> None:
        origin = module.absolute(wanted.name, wanted.level)
        if self._take(origin, module.name):
            for part, _ in wanted.parts:
                self._take(f"{origin}.{part}", module.name)
                self._take_for_c(part, module)
        is_needed = unit is module.body or module.name in self.roots
        if is_needed and not wanted.is_optional:
            for each in (origin, *(f"{origin}.{part}" for part, _ in wanted.parts)):
                if (name := left_out(each)) and self.library.spec(each):
                    reason = LEFT_OUT[name]
                    raise ReachError(f"{module.name} imports {each}, which is left out: {reason}")

    def _take_for_c(self, name: str, module: Module) -> None:
        if name in IMPORTED_BY_C:
            self._take(IMPORTED_BY_C[name], module.name)

    def _mention_anywhere(self, name: str) -> None:
        if name not in self._named:
            self._named.add(name)
            for each in self._functions.get(name, ()):
                self._start(*each)

    def _mention(self, module: Module, name: str, seen: set[tuple[str, str]]) -> bool:
        """Let run what a plain name means in a module; return whether it means anything there."""
        if (module.name, name) in seen:
            return True
        seen.add((module.name, name))
        for unit in module.functions.get(name, ()):
            self._start(module, unit)
        origins = [*module.bindings.get(name, ()), *module.bindings.get("*", ())]
        found = name in module.functions or name in module.stored
        for origin, own in origins:
            other = self._modules.get(origin)
            if other is not None and own:
                found |= self._mention(other, name if own == "*" else own, seen)
        return found

    def _mention_member(self, module: Module, base: str, name: str) -> None:
        """Let run what `base.name` means: if the base can only be a module, what is in that."""
        origins = {f"{origin}.{own}" if own else origin for origin, own in module.bindings[base]}
        if base in module.stored or not origins or origins - self.reasons.keys():
            self._mention_anywhere(name)
            return
        for origin in origins & self._modules.keys():
            if not self._mention(self._modules[origin], name, set()):
                self._mention_anywhere(name)


def packages(name: str) -> list[str]:
    """Return the packages that a module is in, from the outermost on, and itself."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def left_out(name: str) -> str:
    """Return what of LEFT_OUT a module belongs to; empty if to nothing."""
    return next((each for each in packages(name) if each in LEFT_OUT), "")


def strings(extension: Path, library: Library) -> list[str]:
    """Return the modules whose names are strings in an extension module, which may import them."""
    found = {
        text.decode()
        for text in re.findall(rb"(?<=\0)[a-z_][a-z0-9_.]+(?=\0)", extension.read_bytes())
    }
    return sorted(
        name
        for name in found
        if name.partition(".")[0] in sys.stdlib_module_names and library.spec(name)
    )


# --- reading sources ------------------------------------------------------------------------------


def parse(name: str, source: Path, library: Library, *, is_program: bool = False) -> Module:
    """Read the source of a module; of the program itself, also what runs if it is executed."""
    module = Module(name=name, is_package=source.name == "__init__.py")
    _Reader(module, library, is_program=is_program).visit(ast.parse(source.read_bytes()))
    for unit in module.units():
        for each in unit.imports:
            origin = module.absolute(each.name, each.level)
            for part, given in each.parts:
                module.bindings[given].add((origin, part))
    return module


class _Reader(ast.NodeVisitor):
    """Sorts what is in a module by the functions that it is in."""

    def __init__(self, module: Module, library: Library, *, is_program: bool) -> None:
        self._is_program = is_program
        self._module = module
        self._library = library
        self._unit = module.body
        self._is_guarded = False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Read a function as one of its own; what its decorators and defaults say runs before."""
        for part in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
            if part is not None:
                self.visit(part)
        if any(_name(each) not in _WRAPPERS for each in node.decorator_list):
            self._unit.kept.add(node.name)
        self._module.stored.update(
            each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)
        )
        outer, self._unit = self._unit, Unit()
        self._module.functions[node.name].append(self._unit)
        self._each(node.body)
        self._unit = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Read a lambda as a part of what is around it."""
        self._module.stored.update(
            each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)
        )
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        """Note modules and the names that they get."""
        for each in node.names:
            self._unit.imports.append(Import(name=each.name, is_optional=self._is_guarded))
            first = each.name.partition(".")[0]
            self._module.bindings[each.asname or first].add(
                (each.name if each.asname else first, "")
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note what is taken from a module."""
        names = tuple((each.name, each.asname or each.name) for each in node.names)
        self._unit.imports.append(
            Import(
                name=node.module or "",
                parts=names,
                level=node.level,
                is_optional=self._is_guarded,
            )
        )

    def visit_Name(self, node: ast.Name) -> None:
        """Note a plain name."""
        if isinstance(node.ctx, ast.Load):
            self._unit.names.add(node.id)
        else:
            self._module.stored.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note an attribute, with its base if that is a plain name."""
        if isinstance(node.value, ast.Name):
            self._unit.members.add((node.value.id, node.attr))
        else:
            self._unit.attributes.add(node.attr)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Pass over the list of a module's public names, which calls none of them."""
        if not any(isinstance(each, ast.Name) and each.id == "__all__" for each in node.targets):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note attributes that are named by strings."""
        if _name(node.func) in _BY_NAME:
            for each in node.args:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    self._unit.attributes.update(each.value.split("."))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Note a string, which may be the name of a function of this module."""
        if isinstance(node.value, str) and node.value.isidentifier():
            self._unit.texts.add(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Note the beginning of a name that is put together."""
        match node.left:
            case ast.Constant(value=str(text)) if found := _PREFIX.match(text):
                self._unit.prefixes.add(found[0])
            case _:
                pass
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Note the beginning of a name that is put together."""
        match node.values:
            case [ast.Constant(value=str(text)), *_] if _PREFIX.fullmatch(text):
                self._unit.prefixes.add(text)
            case _:
                pass
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Read the branches that can be taken."""
        known = None if self._is_program else decide(node.test)
        if _name(node.test) in CONSTANTS:
            known = CONSTANTS[_name(node.test)]
        self.visit(node.test)
        if known is not False:
            self._each(node.body)
        if known is not True:
            self._each(node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        """Read a replacement only if what it replaces is not there."""
        outer, self._is_guarded = self._is_guarded, self._is_guarded or _handles_absence(node)
        self._each(node.body)
        self._is_guarded = outer
        self._each((*node.orelse, *node.finalbody))
        if not self._imports_what_is_there(node.body):
            self._each(node.handlers)

    def _imports_what_is_there(self, statements: Iterable[ast.stmt]) -> bool:
        names: list[str] = []
        for each in statements:
            match each:
                case ast.Import():
                    names += [alias.name for alias in each.names]
                case ast.ImportFrom(level=0, module=str(name)):
                    names.append(name)
                case _:
                    return False
        return all(not left_out(name) and self._library.spec(name) for name in names)

    def _each(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)


def _handles_absence(node: ast.Try) -> bool:
    """Return whether a statement goes on without a module that is not there."""
    kinds = {"Exception", "ImportError", "ModuleNotFoundError"}
    return any(
        each.type is None or not kinds.isdisjoint(_name(part) for part in ast.walk(each.type))
        for each in node.handlers
    )


def _name(node: ast.AST) -> str:
    """Return the last part of what is called, or of a decorator."""
    match node:
        case ast.Call(func=inner):
            return _name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def decide(test: ast.expr) -> bool | None:
    """Return what a condition is on this system, in this version; None where it may be both."""
    match test:
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = decide(operand)
            return None if inner is None else not inner
        case ast.BoolOp(op=op, values=values):
            return _combined([decide(each) for each in values], decisive=isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compared(_value(left), op, _value(right))
        case ast.Call(func=ast.Attribute(attr="startswith", value=value), args=[argument]):
            whole, start = _value(value), _value(argument)
            return whole.startswith(start) if {type(whole), type(start)} == {str} else None
        case _:
            return None


def _combined(told: list[bool | None], *, decisive: bool) -> bool | None:
    """Return what an `or` (decided by one that is true) or an `and` (by one that is false) is."""
    if decisive in told:
        return decisive
    return None if None in told else not decisive


_KNOWN: Final[Mapping[str, object]] = {
    "__name__": "",  # not "__main__"
    "os.name": "posix",
    "sys.platform": "linux",
    "sys.version_info": tuple(sys.version_info[:3]),
    "_sys.version_info": tuple(sys.version_info[:3]),
}


def _value(node: ast.expr) -> Any:
    """Return the value of what is known before a program runs; None of all else."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=elements):
            values = tuple(_value(each) for each in elements)
            return None if None in values else values
        case _:
            return _KNOWN.get(ast.unparse(node))


def _compared(left: Any, op: ast.cmpop, right: Any) -> bool | None:
    are_tuples = isinstance(left, tuple) and isinstance(right, tuple)
    match op:
        case _ if left is None or right is None:
            return None
        case ast.Eq() | ast.NotEq():
            return (left == right) == isinstance(op, ast.Eq)
        case ast.In() if isinstance(right, tuple):
            return bool(left in right)
        case ast.GtE() | ast.Gt() if are_tuples:
            return bool(left >= right)
        case ast.LtE() | ast.Lt() if are_tuples:
            return bool(left < right)
        case _:
            return None
