"""Queries to the node's containerd binary, and the facts that their results show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from runtimes import edits
from runtimes.containerd.imports import File, is_ambiguous, load, probe_mark, probe_name
from runtimes.containerd.schema import CRI, table_or_empty
from runtimes.containerd.templates import filled, variables
from runtimes.dataclass import dataclass, replace
from runtimes.edits import value
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import EMPTY, BinaryQuery, Desired, Observation, Tree, token

_OTHERS: Final = "effective without the drop-in"
_FIRST: Final = "effective, first {}"
_MOST_SEARCHED: Final = 20
"""The number of files among which one that the binary does not load is searched for."""
_LOADS: Final = 8
_NEW_ESCAPE: Final = lazy_pattern(r"\\[xe]")

# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The known facts about the node's binary; None for those without a successful query.

    `newest` is the newest schema version that it supports and `merges` whether it merges imports
    deeply. `effective` is the dump of the current files; if the binary does not load them because
    of our drop-in (`breaks`), it is that of all others. `original` is the dump of the files without
    our keys; it is known only if we own any. `reads_first_schema` is whether it uses the CRI
    section of a version 1 file.
    """

    newest: int | None
    merges: bool | None
    effective: Tree | None
    original: Tree | None = None
    reads_first_schema: bool | None = None
    drop_in_breaks: bool = False

    @property
    def without_us(self) -> Tree | None:
        """Return the effective configuration that the node would have without our keys."""
        return self.effective if self.original is None else self.original


def binary_facts(observation: Observation) -> Facts:
    """Return the facts that the query results so far show about the binary."""
    default = _answer_tree(observation, "default")
    probe = _answer_tree(observation, "merge")
    merges = None
    if probe is not None:
        # The root config of the probe sets a CNI directory, and its drop-in only adds a handler.
        # The directory is in the dump only if the binary merges both.
        merges = any("/probe/root" in str(item) for _, item in edits.leaves(probe))
    newest = (default or EMPTY).get("version")
    first = _answer_tree(observation, "first schema")
    effective, others = _answer_tree(observation, "effective"), _answer_tree(observation, _OTHERS)
    return Facts(
        newest=newest if type(newest) is int and newest > 0 else None,
        merges=merges,
        effective=others if effective is None else effective,
        original=_answer_tree(observation, "original"),
        reads_first_schema=None if first is None else "/probe" in str(first),
        drop_in_breaks=effective is None and others is not None,
    )


def _answer_tree(observation: Observation, question: str) -> Tree | None:
    """Return the parsed result of a query; None if it was not run or failed."""
    answer = observation.results.get(question)
    return parsed(answer.out, question) if answer is not None and answer.ok else None


@lru_cache(maxsize=16)
def parsed(out: str, question: str) -> Tree:
    """Return the output of a query as plain values; cached, because a plan reads it repeatedly."""
    return MappingProxyType(toml_editor.tree(out.encode(), f"containerd's answer ({question})"))


# --- queries --------------------------------------------------------------------------------------


def queries(desired: Desired, observation: Observation) -> tuple[BinaryQuery, ...]:
    """Return the next queries: defaults, then the merge of imports and the effective config."""
    if "default" not in observation.results:
        return (BinaryQuery(name="default", argv=("config", "default"), is_lasting=True),)
    if not observation.results["default"].ok:
        return ()
    facts = binary_facts(observation)
    wanted = []
    if "merge" not in observation.results:
        wanted.append(_merge_probe(facts.newest or 2))
    files, _ = load(desired, observation)
    if "effective" not in observation.results:
        query = dump("effective", files, facts, variables(desired, observation))
        # What the files say before our first change is what they say without our keys afterwards.
        wanted.append(replace(query, is_stored=not observation.owned))
    elif not observation.results["effective"].ok:
        wanted += _searching(desired, observation, files, facts)
    wanted += [
        _section_probe(files, file)
        for file in files
        if is_ambiguous(files, file) and probe_name(file) not in observation.results
    ]
    is_first = (bool(files) and files[0].version == 1 and not files[0].is_empty) or any(
        file.version == 1 and len(file.sections) > 1 for file in files
    )
    if is_first and (facts.newest or 2) > 2 and "first schema" not in observation.results:
        wanted.append(_first_schema_probe())
    return tuple(wanted)


def _searching(
    desired: Desired, observation: Observation, files: Sequence[File], facts: Facts
) -> Iterator[BinaryQuery]:
    """Yield the queries that show which file the binary does not load.

    First the files are loaded without our drop-in, which another installer may have written, and
    then the first file alone, the first two files, and so on.
    """
    values = variables(desired, observation)
    paths = [file.path for file in files]
    if desired.drop_in in paths[1:] and _OTHERS not in observation.results:
        yield dump(_OTHERS, files, facts, values, without=frozenset({desired.drop_in}))
    elif not facts.drop_in_breaks and _FIRST.format(1) not in observation.results:
        for count in range(1, min(len(files), _MOST_SEARCHED)):
            yield dump(_FIRST.format(count), files, facts, values, without=frozenset(paths[count:]))


def unloadable_file(desired: Desired, observation: Observation, files: Sequence[File]) -> str:
    """Return the path of the file that the binary does not load, the root config's if unknown."""
    if binary_facts(observation).drop_in_breaks:
        return desired.drop_in
    for count in range(1, len(files) + 1):
        answer = observation.results.get(_FIRST.format(count))
        if answer is None or not answer.ok:
            return files[count - 1].path if count > 1 else desired.config
    return desired.config


def _merge_probe(newest: int) -> BinaryQuery:
    """Return the query that shows whether the binary merges imports deeply into the root config."""
    version = min(newest, 4)
    cri = f'plugins."{CRI[version]}"'
    root = f'version = {version}\nimports = ["{token(1)}"]\n[{cri}.cni]\nconf_dir = "/probe/root"\n'
    drop_in = (
        f"version = {version}\n[{cri}.containerd.runtimes.probe]\nruntime_type ="
        ' "io.containerd.runc.v2"\n'
    )
    argv = ("--config", token(0), "config", "dump")
    return BinaryQuery(
        name="merge", argv=argv, files=(root.encode(), drop_in.encode()), is_lasting=True
    )


def _section_probe(files: Sequence[File], file: File) -> BinaryQuery:
    """Return the query that shows which CRI section the binary reads from a file beside others."""
    imports = ", ".join(f'"{token(index)}"' for index in range(1, len(files)))
    data = []
    for each in files:
        text = f"version = {each.version}\n" if "version" in each.tree else ""
        text += f"imports = [{imports}]\n" if each is files[0] else ""
        for cri in each.sections if each is file else ():
            text += f'[plugins."{cri}".cni]\nconf_dir = "{probe_mark(cri)}"\n'
        data.append(text.encode())
    argv = ("--config", token(0), "config", "dump")
    return BinaryQuery(name=probe_name(file), argv=argv, files=tuple(data), is_lasting=True)


def _times(files: Sequence[File], facts: Facts) -> int:
    """Return the number of loads: several if a file has no version and sections of a later schema.

    containerd 2.3 and later migrate such a file in the random order of a Go map: of two tables that
    become the same section, one wins.
    """
    if (facts.newest or 2) <= 2:
        return 1
    return (
        _LOADS if any(file.version == 1 and set(file.sections) - {CRI[1]} for file in files) else 1
    )


def _first_schema_probe() -> BinaryQuery:
    """Return the query that shows whether the binary reads `plugins.cri` of a version 1 file.

    containerd 2.0 to 2.2 ignore it; 2.3 reads it again.
    """
    text = '[plugins.cri.cni]\nconf_dir = "/probe"\n'
    argv = ("--config", token(0), "config", "dump")
    return BinaryQuery(name="first schema", argv=argv, files=(text.encode(),), is_lasting=True)


def dump(
    question: str,
    files: Sequence[File],
    facts: Facts,
    values: Mapping[str, str] = EMPTY,
    *,
    without: frozenset[str] = frozenset(),
) -> BinaryQuery:
    """Return the query that has the binary load a configuration and its imports from staged files.

    `values` are the values of a template's variables, `without` the paths of imported files to
    leave out.
    """
    files = [file for file in files if file.path not in without]
    staged = {file.path: index for index, file in enumerate(files)}
    argv = ("--config", token(0), "config", "dump")
    if not files:
        text = f"version = {min(facts.newest or 2, 4)}\nimports = []\n"
        return BinaryQuery(name=question, argv=argv, files=(text.encode(),))
    data = []
    for file in files:
        document = toml_editor.parse(file.data, file.path)
        if file.imports or "imports" in file.tree:
            _require_known_escapes(file, toml_editor.text_of(document, ("imports",)))
            targets = [p for _, result in file.imports for p in result if p not in without]
            names = [token(staged[p]) if p in staged else p for p in targets if p != file.path]
            document = toml_editor.put(document, ("imports",), names)
            if file.is_empty:
                document = toml_editor.put(document, ("version",), min(facts.newest or 2, 4))
        data.append(filled(document.encode(), values))
    return BinaryQuery(
        name=question, argv=argv, files=tuple(data), names=tuple(staged), times=_times(files, facts)
    )


def _require_known_escapes(file: File, text: str) -> None:
    r"""Raise ConfigError if `imports` has TOML 1.1 escapes (\xHH, \e), which some releases reject.

    The staged files have other paths there, so the binary would load what it does not load in the
    file.
    """
    if _NEW_ESCAPE.search(text):
        raise ConfigError(
            file.path,
            r"its `imports` has an escape of TOML 1.1 (\x or \e), with which it cannot be"
            r" validated",
            hint="write these paths without the escape",
        )


def cri_id(file: File, facts: Facts) -> str:
    """Return the id of the CRI section that the binary reads from a file.

    A version 2 file may contain the section of version 3 as well (as on AKS). Then containerd 2.x
    reads only the section of version 3, and 1.x only that of version 2.
    """
    new = CRI[3]
    if file.section:
        return file.section
    if file.version == 1 and facts.reads_first_schema is False:
        return new
    if (
        file.version == 2
        and (facts.newest or 2) >= 3
        and new in table_or_empty(file.tree, ("plugins",))
    ):
        return new
    return file.cri


def has_section(file: File, facts: Facts) -> bool:
    """Return whether a file has the CRI section that the binary reads from it."""
    return isinstance(value(file.tree, ("plugins", cri_id(file, facts))), Mapping)
