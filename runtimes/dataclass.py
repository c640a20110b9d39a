"""Dataclasses that cost little to define: a start of the program defines about eighty of them.

Python's `dataclasses` writes the source of the methods of each class and compiles it at every
start: half a millisecond for a class, and `inspect`, which is large. The decorator here gives a
class the same methods as functions that exist already and read the fields of the class. Instances
are made as fast (docs/internals/benchmarks.md).

What there is has the names, arguments and behaviour that it has in `dataclasses`; mypy takes it for
that. Python's own `fields`, `replace` and `asdict` accept the classes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

_T = TypeVar("_T")
_MISSING: Final[Any] = object()


class _Field:
    """The declaration of a field. `field` returns one; any other default is stored in one."""

    __slots__ = ("compare", "default", "default_factory", "init", "repr")

    def __init__(
        self,
        *,
        default: Any = _MISSING,
        default_factory: Any = _MISSING,
        init: bool = True,
        repr: bool = True,  # noqa: A002  # the name that it has in dataclasses
        compare: bool = True,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.init = init
        self.repr = repr
        self.compare = compare


def _dataclass(
    *, slots: bool, frozen: bool = False, kw_only: bool = False
) -> Callable[[type[_T]], type[_T]]:
    """Return a decorator that makes a class of annotated fields a dataclass.

    Its bases must not be dataclasses, and every field has a slot.
    """
    if not slots:
        raise TypeError("a dataclass must have slots")
    return lambda cls: _made(cls, frozen=frozen, kw_only=kw_only)


def _replace(instance: _T, /, **changes: Any) -> _T:
    """Return a copy with other values for some fields. Raises TypeError for an unknown one."""
    for name, declared in _fields(type(instance)).items():
        if declared.init and name not in changes:
            changes[name] = getattr(instance, name)
    return type(instance)(**changes)


def _asdict(instance: Any) -> dict[str, Any]:
    """Return the fields by name, and so of every dataclass in lists, tuples and dictionaries."""
    return {name: _plain(getattr(instance, name)) for name in _fields(type(instance))}


if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
else:
    asdict, dataclass, field, replace = _asdict, _dataclass, _Field, _replace

__all__ = ["asdict", "dataclass", "field", "replace"]


# --- the methods ----------------------------------------------------------------------------------


def _made(cls: type[_T], *, frozen: bool, kw_only: bool) -> type[_T]:
    """Return a class with slots and methods in place of one that only declares its fields."""
    namespace = dict(vars(cls))
    declared: dict[str, _Field] = {}
    for name in cls.__annotations__:
        default = namespace.pop(name, _MISSING)
        declared[name] = default if isinstance(default, _Field) else _Field(default=default)
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    order = () if kw_only else tuple(name for name, each in declared.items() if each.init)
    methods = _comparison(declared, frozen=frozen)
    if frozen:
        methods |= {"__setattr__": _refuse_assignment, "__delattr__": _refuse_deletion}
    metaclass: Any = type(cls)
    new = metaclass(
        cls.__name__,
        cls.__bases__,
        {
            "__repr__": _repr,
            **methods,
            **namespace,
            "__slots__": tuple(declared),
            "__match_args__": order,
            "__dataclass_fields__": _PythonFields(declared),
        },
    )
    new.__qualname__ = cls.__qualname__
    if "__init__" not in namespace:
        new.__init__ = _initializer(new, declared, order)
    return cast("type[_T]", new)


def _initializer(
    cls: type, declared: Mapping[str, _Field], order: tuple[str, ...]
) -> Callable[..., None]:
    finish = vars(cls).get("__post_init__", _nothing)
    # A slot is set by its own method, since `__setattr__` refuses to in a frozen class.
    fields = tuple(
        (name, vars(cls)[name].__set__, each.init, each.default, each.default_factory)
        for name, each in declared.items()
    )

    def __init__(self: Any, /, *positional: Any, **values: Any) -> None:  # noqa: N807
        if positional:
            values = _named(cls, order, positional, values)
        used = 0
        for name, put, is_parameter, default, factory in fields:
            if is_parameter and name in values:
                put(self, values[name])
                used += 1
            elif default is not _MISSING:
                put(self, default)
            elif factory is not _MISSING:
                put(self, factory())
            else:
                raise TypeError(f"{cls.__qualname__}() needs a value for {name}")
        if used < len(values):
            unknown = ", ".join(name for name in values if not _is_parameter(declared, name))
            raise TypeError(f"{cls.__qualname__}() has no parameter {unknown}")
        finish(self)

    return __init__


def _nothing(_instance: object) -> None:
    """Do nothing in place of a `__post_init__`."""


def _is_parameter(declared: Mapping[str, _Field], name: str) -> bool:
    return name in declared and declared[name].init


def _named(
    cls: type, order: tuple[str, ...], positional: tuple[Any, ...], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all arguments by name. Raises TypeError for one too many, and for one given twice."""
    if len(positional) > len(order):
        raise TypeError(f"{cls.__qualname__}() takes {len(order)} positional arguments at most")
    named = dict(zip(order, positional, strict=False))
    if twice := ", ".join(named.keys() & values.keys()):
        raise TypeError(f"{cls.__qualname__}() has two values for {twice}")
    return {**named, **values}


def _comparison(declared: Mapping[str, _Field], *, frozen: bool) -> dict[str, Any]:
    """Return the methods that compare; only what does not change can be hashed."""
    names = [name for name, each in declared.items() if each.compare]
    key: Callable[[Any], Any] = attrgetter(*names) if names else lambda _: ()

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if self.__class__ is not other.__class__:
            return NotImplemented
        return bool(key(self) == key(other))

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(key(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}


def _repr(self: Any) -> str:
    cls = type(self)
    shown = (f"{n}={getattr(self, n)!r}" for n, each in _fields(cls).items() if each.repr)
    return f"{cls.__qualname__}({', '.join(shown)})"


def _refuse_assignment(self: Any, name: str, value: object) -> None:
    del value
    raise AttributeError(f"cannot assign to {name}: {type(self).__qualname__} is frozen")


def _refuse_deletion(self: Any, name: str) -> None:
    raise AttributeError(f"cannot delete {name}: {type(self).__qualname__} is frozen")


# --- the fields -----------------------------------------------------------------------------------


class _PythonFields:
    """The attribute by which Python's own functions know a dataclass; made when they read it."""

    def __init__(self, declared: Mapping[str, _Field]) -> None:
        self.declared = declared

    def __get__(self, _instance: object, _owner: type) -> dict[str, Any]:
        import dataclasses  # noqa: PLC0415  # large, and the program itself does not read it

        made = []
        for name, each in self.declared.items():
            given = {key: getattr(each, key) for key in _Field.__slots__}
            given = {key: value for key, value in given.items() if value is not _MISSING}
            made.append((name, Any, dataclasses.field(**given)))
        same = dataclasses.make_dataclass("Same", made, kw_only=True)
        fields: dict[str, Any] = vars(same)["__dataclass_fields__"]
        return fields


def _fields(cls: type) -> Mapping[str, _Field]:
    """Return how the fields of a dataclass are declared. Raises TypeError for another class."""
    attribute = vars(cls).get("__dataclass_fields__")
    if not isinstance(attribute, _PythonFields):
        raise TypeError(f"{cls.__qualname__} is not a dataclass")
    return attribute.declared


def _plain(value: Any) -> Any:
    if isinstance(vars(type(value)).get("__dataclass_fields__"), _PythonFields):
        return _asdict(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
