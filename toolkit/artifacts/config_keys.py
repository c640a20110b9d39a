"""The keys of the toolkit's config.toml that `--toolkit-config` sets, as the toolkit knows them.

Its own nvidia-ctk is asked: it alone knows the keys of its release and their types.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from runtimes import edits
from runtimes.edits import dotted
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Key
from toolkit import redact
from toolkit.errors import StepError, UsageProblem
from toolkit.node import command
from toolkit.settings import checks
from toolkit.settings.resolve import FALSE, TRUE, Settings

_COMMENTED: Final = lazy_pattern(r"(?m)^#(?=[a-z][a-z0-9-]* = )")
_MESSAGE: Final = lazy_pattern(r'level=error msg="((?:[^"\\]|\\.)*)"')
_TIMEOUT: Final = 30.0


def chosen(settings: Settings, program: Path) -> dict[Key, Any]:
    """Return the keys and values of `--toolkit-config`. `program` is the toolkit's nvidia-ctk.

    Raises UsageProblem for every key that this toolkit does not know, and every value of another
    type.
    """
    given = checks.toolkit_config(settings.toolkit_config)
    option = settings.by("toolkit_config")
    try:
        samples = _samples(program, given)
        problems = _unknown(program, given, option) if samples is None else []
    except StepError as error:
        raise UsageProblem(
            [f"{option}: the keys cannot be checked: {error}"], hint=error.hint
        ) from error
    result: dict[Key, Any] = {}
    for name, text in given.items() if samples is not None else ():
        key = tuple(name.split("."))
        try:
            result[key] = _value(edits.value(samples or {}, key), text)
        except ValueError as error:
            problems.append(f"{option}={redact.text(f'{name}={text}')}: {error}")
    if problems:
        hint = (
            "`nvidia-ctk config default` prints the keys; the lists' items are separated by commas"
        )
        raise UsageProblem(problems, hint=hint)
    return result


def _samples(program: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """Return a value of the right type for each key, as a tree; None if one of them is unknown."""
    words = [word for name in names for word in ("--set", f"{name}=true")]
    result = command.run(
        [str(program), "config", "--config-file=/dev/null", *words], timeout=_TIMEOUT
    )
    if not result.ok and _MESSAGE.search(result.err) is None:
        raise StepError(f"{program} failed: {result.err[-200:].strip() or f'exit {result.code}'}")
    return _tree(program, result.out) if result.ok else None


def _tree(program: Path, text: str) -> dict[str, Any]:
    """Return what nvidia-ctk printed; keys with their default are comments in it."""
    try:
        return tomllib.loads(_COMMENTED.sub("", text))
    except tomllib.TOMLDecodeError as error:
        raise StepError(f"{program} printed no valid TOML: {error}") from error


def _unknown(program: Path, given: Mapping[str, str], option: str) -> list[str]:
    """Return a message for every key that the toolkit does not know, with the most similar key."""
    default = command.run([str(program), "config", "default"], timeout=_TIMEOUT)
    known = (
        [dotted(key) for key, _ in edits.leaves(_tree(program, default.out))] if default.ok else []
    )
    problems = []
    for name in given:
        if _samples(program, (name,)) is not None:
            continue
        last = name.rpartition(".")[2]
        near = [each for each in known if each.rpartition(".")[2] == last]
        near = near or difflib.get_close_matches(name, known, n=1)
        asked = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"{option}={name}: this toolkit has no such key{asked}")
    return problems


def _value(sample: Any, text: str) -> Any:
    """Return a text as the type of a sample. Raises ValueError if it cannot be."""
    if isinstance(sample, bool):
        word = text.lower()
        if word not in TRUE | FALSE:
            raise ValueError("must be true or false")
        return word in TRUE
    if isinstance(sample, list):
        return [item for item in text.split(",") if item]
    if isinstance(sample, str):
        return text
    raise ValueError("a value of this type cannot be set")
