"""What the node's own binary says about itself and about a staged configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtimes import tomldoc
from runtimes.containerd.facts import Facts, told
from runtimes.containerd.imports import File, load
from runtimes.containerd.schema import CRI, table_or_empty
from runtimes.containerd.templates import filled, variables
from runtimes.edits import value
from runtimes.model import EMPTY, Desired, Observation, Question, token


def questions(desired: Desired, seen: Observation) -> tuple[Question, ...]:
    """Ask for the defaults first, then how imports merge and what is in effect today."""
    if "default" not in seen.answers:
        return (Question(name="default", argv=("config", "default"), is_lasting=True),)
    if not seen.answers["default"].ok:
        return ()
    facts = told(seen)
    wanted = []
    if "merge" not in seen.answers:
        wanted.append(_merge_probe(facts.newest or 2))
    files, _ = load(desired, seen)
    if "effective" not in seen.answers:
        wanted.append(dump("effective", files, facts, variables(desired, seen)))
    is_first = bool(files) and files[0].version == 1 and not files[0].is_empty
    if is_first and (facts.newest or 2) > 2 and "first schema" not in seen.answers:
        wanted.append(_first_schema_probe())
    return tuple(wanted)


def _merge_probe(newest: int) -> Question:
    version = min(newest, 4)
    cri = f'plugins."{CRI[version]}"'
    root = f'version = {version}\nimports = ["{token(1)}"]\n[{cri}.cni]\nconf_dir = "/probe/root"\n'
    drop_in = (
        f'version = {version}\n[{cri}.containerd.runtimes.probe]\nruntime_type = "io.containerd.runc.v2"\n'
    )
    argv = ("--config", token(0), "config", "dump")
    return Question(name="merge", argv=argv, files=(root.encode(), drop_in.encode()), is_lasting=True)


def _first_schema_probe() -> Question:
    """Ask whether `plugins.cri` of a version 1 file counts: 2.0 to 2.2 ignore it, 2.3 reads it again."""
    text = '[plugins.cri.cni]\nconf_dir = "/probe"\n'
    argv = ("--config", token(0), "config", "dump")
    return Question(name="first schema", argv=argv, files=(text.encode(),), is_lasting=True)


def dump(question: str, files: Sequence[File], facts: Facts, values: Mapping[str, str] = EMPTY) -> Question:
    """Stage a configuration with its imports and have the binary load it.

    `values` are what the variables of a template stand for.
    """
    staged = {file.path: index for index, file in enumerate(files)}
    argv = ("--config", token(0), "config", "dump")
    if not files:
        text = f"version = {min(facts.newest or 2, 4)}\nimports = []\n"
        return Question(name=question, argv=argv, files=(text.encode(),))
    data = []
    for file in files:
        document = tomldoc.parse(file.data, file.path)
        if file.imports or "imports" in file.tree:
            targets = [p for _, found in file.imports for p in found]
            names = [token(staged[p]) if p in staged else p for p in targets if p != file.path]
            document = tomldoc.put(document, ("imports",), names)
            if file.is_empty:
                document = tomldoc.put(document, ("version",), min(facts.newest or 2, 4))
        data.append(filled(document.encode(), values))
    return Question(name=question, argv=argv, files=tuple(data), names=tuple(staged))


def cri_id(file: File, facts: Facts) -> str:
    """Return the id of the CRI section that counts in a file.

    A version 2 file may carry the id of version 3 as well (AKS does): then
    containerd 2.x keeps only the latter and 1.x only the former.
    """
    new = CRI[3]
    if file.version == 1 and facts.reads_first_schema is False:
        return new
    if file.version == 2 and (facts.newest or 2) >= 3 and new in table_or_empty(file.tree, ("plugins",)):
        return new
    return file.cri


def has_section(file: File, facts: Facts) -> bool:
    """Tell whether a file has the CRI section that counts in it."""
    return isinstance(value(file.tree, ("plugins", cri_id(file, facts))), Mapping)
