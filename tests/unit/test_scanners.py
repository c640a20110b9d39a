"""Where values begin and end: what `tomlcut` and `jsoncut` say, held to `tomli` and `json`."""

from __future__ import annotations

import json
from typing import Final

import pytest
import tomli
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from runtimes.formats import json_scanner, toml_scanner
from toolkit import redact

PATH: Final = "/etc/x"
ENOUGH: Final = settings(deadline=None, max_examples=100)

# What ends a string, what seems to, and what ends a value that is no string.
_SIGNS: Final = st.text("\"'\\nu\n #=[]{},é", max_size=12)
_QUOTES: Final = st.sampled_from(['"', "'", '"""', "'''"])


def _is_one_string(spelled: str) -> bool:
    try:
        # Once more in an array: after a shorter string only one place may have a comment.
        alone, (listed,) = tomli.loads(f"k = {spelled}\na = [{spelled}]\n").values()
        return isinstance(alone, str) and alone == listed
    except ValueError:
        return False


@st.composite
def _strings(draw: st.DrawFn) -> str:
    """Return a string as TOML spells one, of any of its four kinds."""
    quote, inside = draw(_QUOTES), draw(_SIGNS)
    if quote[0] == '"':
        # An escape is whole, so that few examples are thrown away.
        inside = (
            inside.replace("\\", "\\\\") if draw(st.booleans()) else inside.replace("\\", '\\"')
        )
    if len(quote) == 1:
        inside = inside.replace("\n", "")
    spelled = f"{quote}{inside}{quote}"
    assume(_is_one_string(spelled))
    return spelled


_VALUES: Final = _strings() | st.lists(_strings(), max_size=3).map(
    lambda each: f"[{', '.join(each)}]"
)
_ALL_KINDS: Final = (
    '"""\nof\n\\"\\\\ "" two\\\n  lines"""', '"""ends in two\\n"""""', "'''\n''o'\n'''",
    "'''x'''''",
    '{\n  x = 1, # }\n  "y" = "}",\n}', "{ # {\n}", '{ a = [ {\n} ], }', '"\\x22 \\e"', "07:32",
    '""""""', '"\\\\"', '"#\\""', "'\\'", "''",
)  # fmt: skip


@ENOUGH
@given(st.lists(_VALUES, min_size=1, max_size=4))
@example(_ALL_KINDS)
def test_a_toml_value_ends_where_tomli_says(values: list[str]) -> None:
    text = "".join(f"k{number} = {spelled} # {number}\n" for number, spelled in enumerate(values))
    found = list(toml_scanner.statements(text))
    assert [statement.path for statement in found] == [
        (f"k{number}",) for number in range(len(values))
    ]
    alone = [tomli.loads(text[statement.start : statement.end]) for statement in found]
    assert {key: value for each in alone for key, value in each.items()} == tomli.loads(text)


@ENOUGH
@given(
    st.dictionaries(st.text(max_size=8) | _SIGNS, st.text(max_size=8) | _SIGNS, max_size=4),
    st.booleans(),
)
@example({'\\"': '\\\\"', "\\": "", '"}': "{,:"}, True)  # noqa: FBT003 - Hypothesis takes no names here
def test_a_json_value_ends_where_json_says(content: dict[str, str], ascii_only: bool) -> None:  # noqa: FBT001
    text = json.dumps({"outer": content}, ensure_ascii=ascii_only)
    root = json_scanner.read(text.encode(errors="surrogatepass"), PATH)[0].root
    assert root is not None
    outer = root.at("outer")
    assert outer is not None
    found = {json.loads(text[each.key_start : each.key_end]): each for each in outer.below}
    assert {key: json.loads(text[each.start : each.end]) for key, each in found.items()} == content


@ENOUGH
@given(_SIGNS)
@example('say "pass\\" word" \\')
def test_a_secret_string_is_masked_to_its_end(secret: str) -> None:
    line = json.dumps({"password": f"hidden{secret}", "x": "shown"})
    assert redact.text(line) == '{"password": "***", "x": "shown"}'


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('"auth"."a\\"b".\'c\'.token = "x\\"y" # z', '"auth"."a\\"b".\'c\'.token = "***" # z'),
        ('run --token "a\\" b" --level=1', "run --token *** --level=1"),
        ("run --token 'a b' --level=1", "run --token *** --level=1"),
    ],
)
def test_keys_and_flags_with_quotes_are_known(line: str, masked: str) -> None:
    assert redact.text(line) == masked
