"""The keys to set, the files that contain them, and the settings that our handlers inherit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from runtimes.adapter import DesiredConfig, is_sandbox, no_longer_isolated
from runtimes.crio.config_files import (
    DEFAULT,
    ESSENTIAL,
    RUNTIME,
    RUNTIMES,
    configured_default,
    handlers,
    is_ours,
    listed,
)
from runtimes.crio.oci_hook import hook_file
from runtimes.crio.validate import answered, complete, last_line
from runtimes.edits import DesiredKey, reverting_keys, value, without
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, EMPTY, Desired, Edit, Observation, Origin, Tree

_FLAG: Final = "--default-runtime"


def desired_config(desired: Desired, observation: Observation) -> DesiredConfig:
    """Return the keys for the drop-in, or crio.conf if there is none; in hook mode the hook file.

    Raise ConfigError if a file cannot be parsed or CRI-O does not load today's files, and
    UnsupportedSetup if CRI-O does not read the directory of the hook.
    """
    view = handlers(desired, observation, without=desired.drop_in)
    answer = observation.results.get("effective")
    if answer is None:
        paths = (desired.config, *listed(desired, observation.files))
        toml_editor.refuse_1_1((path, observation.data(path)) for path in paths)
    if answer is not None and not answer.ok:
        raise ConfigError(
            desired.config,
            f"{observation.binary} does not load its configuration: {last_line(answer.err)}",
            hint="CRI-O would not start with it; repair it first",
        )
    _refuse_unread_hooks(desired, observation)
    _refuse_flag(desired, observation.argv)
    path = desired.drop_in or desired.config
    model = _model(desired, observation, view)
    base = view.get(model, EMPTY) if model else EMPTY
    owned = observation.ownership(path)
    fresh = bool(desired.drop_in) and (
        observation.data(path) is None or (owned is not None and owned.original is None)
    )
    wanted: list[DesiredKey] = []
    if not desired.hook_mode:
        tree = toml_editor.tree(observation.data(path) or b"", path)
        wanted += _handler_keys(desired, path, base, owned.edits if owned else (), tree)
        wanted += _default_keys(desired, observation, path, tree)
    notes: list[str] = []
    if not observation.binary:
        notes.append(
            "no crio binary was found: only the structure of the files was checked, the change was"
            " not validated by CRI-O"
        )
    whole = hook_file(desired, observation)
    if desired.hook_mode and owned is not None:
        # The drop-in's handlers together with the hook would run the hook twice, so the drop-in is
        # removed.
        whole = {**whole, path: without(toml_editor, owned, observation.data(path))[0]}
    if whole.get(desired.hook, b"") is None and desired.hook:
        notes.append(f"{desired.hook} is removed, because it would run the hook a second time")
    return DesiredConfig(
        keys=tuple(wanted),
        files=() if desired.hook_mode else (path,),
        notes=tuple(notes),
        warnings=tuple(_warnings(desired, observation, view)),
        low_level=_low_level(desired, view, model),
        origin=Origin(
            source=model or "",
            settings=base,
            default=_former_default(desired, observation) if desired.default else "",
        ),
        fresh=frozenset({path} if fresh else ()),
        whole=whole,
    )


def _refuse_unread_hooks(desired: Desired, observation: Observation) -> None:
    """Raise UnsupportedSetup if CRI-O does not read the directory of the hook.

    OpenShift's CRI-O, for example, reads hooks below /run.
    """
    if (
        not desired.hook_mode
        or not answered(observation, "effective")
        or not answered(observation, "default")
    ):
        return
    hook_dirs = value(
        complete(observation, observation.results["effective"].out), (*RUNTIME, "hooks_dir")
    )
    directory = str(PurePosixPath(desired.hook).parent)
    if isinstance(hook_dirs, list) and hook_dirs and directory not in hook_dirs:
        raise UnsupportedSetup(
            f"CRI-O reads no hooks in {directory}, only in {', '.join(map(str, hook_dirs))}",
            hint=f"use --hooks-dir={hook_dirs[-1]}",
        )


def _warnings(
    desired: Desired, observation: Observation, view: Mapping[str, Tree]
) -> Iterator[str]:
    """Yield the warning about a default handler that isolates pods."""
    default = configured_default(desired, observation, without=desired.drop_in)
    table = view.get(default, EMPTY)
    is_vm = table.get("runtime_type") == "vm"
    if (
        desired.default
        and not desired.hook_mode
        and not is_ours(desired, default)
        and (is_vm or is_sandbox("", str(table.get("runtime_path", ""))))
    ):
        yield no_longer_isolated(default, desired.default)


def _refuse_flag(desired: Desired, argv: Sequence[str]) -> None:
    """Raise UnsupportedSetup if the daemon's command line sets a different default handler.

    A flag takes precedence over all files.
    """
    if desired.hook_mode or not desired.default:
        return
    words = iter(argv[1:])
    for word in words:
        flag, equals, given = word.partition("=")
        if flag == _FLAG and (given if equals else next(words, "")) != desired.default:
            raise UnsupportedSetup(
                f"crio runs with {_FLAG}, which takes precedence over its configuration files",
                hint=f"remove {_FLAG} from the unit's command line, or use --set-as-default=false",
            )


def _model(desired: Desired, observation: Observation, view: dict[str, Tree]) -> str | None:
    """Return the handler from which our handlers inherit; None if none runs an OCI runtime.

    The built-in handlers are added to `view`.
    """
    built_in = (
        value(complete(observation, ""), RUNTIMES) if answered(observation, "default") else EMPTY
    )
    for handler, table in (built_in if isinstance(built_in, Mapping) else EMPTY).items():
        view.setdefault(
            handler, {k: v for k, v in table.items() if v not in ("", [], {}, False, 0)}
        )
    for candidate in (*_defaults(desired, observation), "crun", "runc"):
        if candidate in view and not is_ours(desired, candidate) and _runs_oci(view[candidate]):
            return candidate
    return None


def _defaults(desired: Desired, observation: Observation) -> Iterator[str]:
    """Yield the default handler in the files, those before our changes, and the built-in one."""
    recorded = [e.old for o in observation.owned for e in o.edits if e.key == DEFAULT]
    built_in = value(complete(observation, ""), DEFAULT) if answered(observation, "default") else ""
    named = (configured_default(desired, observation, without=desired.drop_in), *recorded, built_in)
    return (each for each in named if isinstance(each, str) and each)


def _former_default(desired: Desired, observation: Observation) -> str:
    """Return the default handler without our change, "" if it is unknown."""
    defaults = _defaults(desired, observation)
    return next((each for each in defaults if not is_ours(desired, each)), "")


def _type(table: Tree) -> str:
    """Return the runtime type of a handler; an empty one means `oci`."""
    return str(table.get("runtime_type") or "oci")


def _runs_oci(table: Tree) -> bool:
    """Return whether a handler runs an OCI runtime: by conmon per container or conmonrs per pod."""
    return _type(table) in ("oci", "pod")


def _low_level(desired: Desired, view: Mapping[str, Tree], model: str | None) -> tuple[str, ...]:
    """Return the binaries of the handlers of others, that of `model` first."""
    result = []
    for handler in dict.fromkeys(([model] if model else []) + list(view)):
        table = view[handler]
        if is_ours(desired, handler) or not _runs_oci(table):
            continue
        binary = str(table.get("runtime_path") or handler)
        # A NUL byte is not valid in a path, so a wrapper could not run such a binary.
        if (
            binary
            and "\0" not in binary
            and not PurePosixPath(binary).name.startswith("nvidia-container-runtime")
        ):
            result.append(binary)
    return tuple(dict.fromkeys(result or ["runc"]))


def _handler_keys(
    desired: Desired, path: str, base: Tree, owned: Sequence[Edit], tree: Tree
) -> list[DesiredKey]:
    """Return the tables of our handlers, and the removal of those that are not desired any more."""
    inherited = {
        k: v
        for k, v in base.items()
        if k not in ("runtime_path", "runtime_type", "inherit_default_runtime")
    }
    wanted = [
        want
        for edit in owned
        if edit.key[:-1] == RUNTIMES and edit.key[-1] not in desired.names
        for want in reverting_keys(path, tree, edit)
    ]
    for handler in desired.handlers:
        new = {"runtime_path": handler.binary, "runtime_type": _type(base), **inherited}
        key = (*RUNTIMES, handler.name)
        created = any(edit.key == key and edit.old is ABSENT for edit in owned)
        wanted.append(
            DesiredKey(path=path, key=key, new=new, exact=created, required_keys=ESSENTIAL)
        )
    return wanted


def _default_keys(
    desired: Desired, observation: Observation, path: str, tree: Tree
) -> Iterator[DesiredKey]:
    """Yield the key of the default handler, or its former value if none is requested any more."""
    if desired.default:
        yield DesiredKey(path=path, key=DEFAULT, new=desired.default)
        return
    owned = observation.ownership(path)
    for edit in owned.edits if owned else ():
        if edit.key == DEFAULT:
            yield from reverting_keys(path, tree, edit)
