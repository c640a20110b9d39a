"""The shell wrappers around the toolkit's programs, and the toolkit's own configuration.

Every container start on a node runs a wrapper several times, so it forks
nothing: the driver's presence is a built-in test, and the end is an `exec`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtimes import edits, tomldoc
from runtimes.edits import Want
from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, Key
from toolkit.errors import NodeNotUnderstood

CONFIG: Final = ".config/nvidia-container-runtime/config.toml"

# What the toolkit's programs assume where their config is silent, as upstream's installer writes it.
DEFAULTS: Final[Mapping[Key, Any]] = {
    ("accept-nvidia-visible-devices-as-volume-mounts",): False,
    ("accept-nvidia-visible-devices-envvar-when-unprivileged",): True,
    ("disable-require",): False,
    ("supported-driver-capabilities",): "compat32,compute,display,graphics,ngx,utility,video",
    ("swarm-resource",): "",
    ("nvidia-container-cli", "debug"): "",
    ("nvidia-container-cli", "environment"): [],
    ("nvidia-container-cli", "ldcache"): "",
    ("nvidia-container-cli", "load-kmods"): True,
    ("nvidia-container-cli", "no-cgroups"): False,
    ("nvidia-container-cli", "user"): "",
    ("nvidia-container-runtime", "debug"): "/dev/null",
    ("nvidia-container-runtime", "log-level"): "info",
    ("nvidia-container-runtime", "mode"): "auto",
    ("nvidia-container-runtime", "modes", "cdi", "annotation-prefixes"): ["cdi.k8s.io/"],
    ("nvidia-container-runtime", "modes", "cdi", "default-kind"): "nvidia.com/gpu",
    ("nvidia-container-runtime", "modes", "cdi", "spec-dirs"): ["/etc/cdi", "/var/run/cdi"],
    (
        "nvidia-container-runtime",
        "modes",
        "csv",
        "mount-spec-path",
    ): "/etc/nvidia-container-runtime/host-files-for-container.d",
    ("nvidia-container-runtime", "modes", "legacy", "cuda-compat-mode"): "ldconfig",
}


# Only on the way without a driver, and only with --require-driver. Nothing is forked here either: a shell is
# all that there has to be. containerd reads the reason in the low-level runtime's log, conmon on stderr.
# A sandbox, and a container that asks for no GPU, has no such variable, or has void or nothing in it.
_REFUSAL: Final = """\
	wish= bundle=. log= last=
	for word; do
		case $last in
			--bundle | -b) bundle=$word ;;
			--log) log=$word ;;
		esac
		case $word in
			--bundle=* | -b=*) bundle=${word#*=} ;;
			--log=*) log=${word#*=} ;;
			create | run) wish=$word ;;
		esac
		last=$word
	done
	if [ -n "$wish" ] && [ -r "$bundle/config.json" ]; then
		asks=
		while IFS= read -r line || [ -n "$line" ]; do
			case $line in
				*'"NVIDIA_VISIBLE_DEVICES=void"'* | *'"NVIDIA_VISIBLE_DEVICES=none"'*) ;;
				*'"NVIDIA_VISIBLE_DEVICES="'*) ;;
				*'"NVIDIA_VISIBLE_DEVICES='*) asks=1 ;;
			esac
			case $line in
				*'"/var/run/nvidia-container-devices/'*@PATTERNS@) asks=1 ;;
			esac
		done < "$bundle/config.json"
		if [ -n "$asks" ]; then
			why='this container asks for GPUs, and the NVIDIA driver is not loaded on this node'
			why="$why (refused, as asked with --require-driver)"
			[ -z "$log" ] || printf '{"level":"error","msg":"%s"}\\n' "$why" >> "$log"
			printf '%s\\n' "$why" >&2
			exit 1
		fi
	fi
"""


def render(
    program: str,
    toolkit: str,
    *,
    low_level: str | None,
    refuses: bool = False,
    prefixes: Sequence[str] = (),
) -> bytes:
    """Return the wrapper of a program, whose real binary is `PROGRAM.real` beside it.

    `toolkit` is its directory as the node names it. `low_level` is what runs in
    its place while the driver is not loaded (None: nothing does): the node's own
    low-level runtime, as its configuration names it. With `refuses` that is only
    for containers that ask for no GPU, be it by an annotation with one of `prefixes`.
    """
    lines = ["#!/bin/sh"]
    if low_level is not None:
        # Not a word about it: what is said here on `create` ends up in the container's own output.
        lines += [
            "if [ ! -e /sys/module/nvidia ]; then",
            *([_refusal(prefixes)] if refuses else []),
            f'\texec {shlex.quote(low_level)} "$@"',
            "fi",
        ]
    here = shlex.quote(toolkit)
    if program not in {"nvidia-ctk", "nvidia-container-cli"}:
        lines.append(f"NVIDIA_CTK_CONFIG_FILE_PATH={shlex.quote(f'{toolkit}/{CONFIG}')}")
        lines.append("export NVIDIA_CTK_CONFIG_FILE_PATH")
    if program == "nvidia-container-cli":
        lines.append(f'LD_LIBRARY_PATH={here}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"')
        lines.append("export LD_LIBRARY_PATH")
    lines.append(f'PATH={here}"${{PATH:+:$PATH}}"')
    lines.append("export PATH")
    lines.append(f'exec {shlex.quote(f"{toolkit}/{program}.real")} "$@"')
    return "\n".join([*lines, ""]).encode()


def _refusal(prefixes: Sequence[str]) -> str:
    quoted = (shlex.quote(f'"{prefix}') for prefix in prefixes)
    patterns = "".join(f" | *{each}*" for each in quoted)
    return _REFUSAL.rstrip("\n").replace("@PATTERNS@", patterns)


def enabled_features(present: bytes | None, path: str) -> tuple[str, ...]:
    """Return the features that a config.toml switches on. Raises NodeNotUnderstood where it is not valid."""
    try:
        features = tomldoc.tree(present or b"", path).get("features")
    except NotUnderstood as error:
        raise NodeNotUnderstood(str(error), hint=error.hint) from error
    return tuple(name for name, on in features.items() if on is True) if isinstance(features, dict) else ()


def configuration(present: bytes | None, path: str, asked: Mapping[Key, Any]) -> bytes:
    """Return the toolkit's config.toml: what is asked, over what is there already, over the defaults.

    Raises NodeNotUnderstood where the one that is there is not valid.
    """
    try:
        tree = tomldoc.tree(present or b"", path)
        wants = [
            Want(path=path, key=key, new=item)
            for key, item in DEFAULTS.items()
            if edits.value(tree, key) is ABSENT and key not in asked
        ]
        wants += [Want(path=path, key=key, new=item) for key, item in asked.items()]
        # Top-level keys first: later ones would fall into a table.
        wants.sort(key=lambda want: len(want.key) > 1)
        change = edits.apply(tomldoc, path, present, wants)
    except NotUnderstood as error:
        raise NodeNotUnderstood(str(error), hint=error.hint) from error
    return (present or b"") if change is None else (change.after or b"")
