"""Regular expressions that are compiled when they are first used.

Python compiles an expression in each process again, which takes 0.1 to 2 ms of CPU time. A start
of this program uses few of its expressions (see docs/internals/benchmarks.md).
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, Final, Generic, cast

_METHODS: Final = frozenset(
    {"search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
)


def lazy_pattern(pattern: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return a pattern that compiles itself at the first call of one of its methods.

    It has the methods of `re.Pattern`, and `pattern`. That first call raises re.error if the
    pattern is invalid; tests/unit/test_lazy_pattern.py compiles all.
    """
    return cast("re.Pattern[AnyStr]", _LazyPattern(pattern, flags))


class _LazyPattern(Generic[AnyStr]):
    def __init__(self, pattern: AnyStr, flags: int) -> None:
        self.pattern: AnyStr = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        """Compile the pattern, and keep the methods as attributes, which are found before this."""
        if name not in _METHODS:
            raise AttributeError(name)
        compiled = re.compile(self.pattern, self._flags)
        vars(self).update({method: getattr(compiled, method) for method in _METHODS})
        return vars(self)[name]
