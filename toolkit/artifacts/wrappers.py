"""The shell wrappers of the toolkit's programs.

Every start of a container runs a wrapper several times, so wrappers do not fork: they check for the
driver with a shell built-in, and end with `exec`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from toolkit.artifacts import toolkit_config

DRIVER_SIGNS: Final = ("/sys/module/nvidia", "/sys/module/nvgpu", "/dev/dxg")
"""Node paths that show the driver: its module, that of a Tegra, the paravirtual GPU of WSL2."""

# Used only with --require-driver, while the driver is not loaded. It needs nothing but a shell and
# does not fork. containerd reads the reason from the low-level runtime's log, conmon from stderr.
# In a sandbox, and in a container that requests no GPU, the variable is missing, empty, `void` or
# `none`. A mount `void`, which CDI specifications of toolkit 1.20.2 contain, means that the other
# mounts request nothing.
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
		asks= mounts= void=
		while IFS= read -r line || [ -n "$line" ]; do
			case $line in
				*'"NVIDIA_VISIBLE_DEVICES=void"'* | *'"NVIDIA_VISIBLE_DEVICES=none"'*) ;;
				*'"NVIDIA_VISIBLE_DEVICES="'*) ;;
				*'"NVIDIA_VISIBLE_DEVICES='*) asks=1 ;;
			esac
			case $line in
				*'"/var/run/nvidia-container-devices/void"'*) void=1 ;;
				*'"/var/run/nvidia-container-devices/'*) mounts=1 ;;
			esac
@ANNOTATIONS@		done < "$bundle/config.json"
		[ -z "$mounts" ] || [ -n "$void" ] || asks=1
		if [ -n "$asks" ]; then
			why='this container requests GPUs, but the NVIDIA driver is not loaded on this node'
			why="$why (refused because of --require-driver)"
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
    """Return the wrapper of a program, whose binary is `PROGRAM.real` in the same directory.

    `toolkit` is the node path of that directory. `low_level` is the program that is executed
    instead while the driver is not loaded: the node's low-level runtime, as its configuration names
    it; None for no such check. With `refuses`, containers that request GPUs are refused then, also
    if they request them by an annotation with one of `prefixes`.
    """
    lines = ["#!/bin/sh"]
    if low_level is not None:
        # Nothing is printed: the output of `create` would become part of the container's output.
        lines += [
            f"if {' && '.join(f'[ ! -e {sign} ]' for sign in DRIVER_SIGNS)}; then",
            *([_refusal(prefixes)] if refuses else []),
            f'\texec {shlex.quote(low_level)} "$@"',
            "fi",
        ]
    directory = shlex.quote(toolkit)
    if program not in {"nvidia-ctk", "nvidia-container-cli"}:
        lines.append(
            f"NVIDIA_CTK_CONFIG_FILE_PATH={shlex.quote(f'{toolkit}/{toolkit_config.CONFIG}')}"
        )
        lines.append("export NVIDIA_CTK_CONFIG_FILE_PATH")
    if program == "nvidia-container-cli":
        lines.append(f'LD_LIBRARY_PATH={directory}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"')
        lines.append("export LD_LIBRARY_PATH")
    lines.append(f'PATH={directory}"${{PATH:+:$PATH}}"')
    lines.append("export PATH")
    lines.append(f'exec {shlex.quote(f"{toolkit}/{program}.real")} "$@"')
    return "\n".join([*lines, ""]).encode()


def _refusal(prefixes: Sequence[str]) -> str:
    quoted = (shlex.quote(f'"{prefix}') for prefix in prefixes)
    patterns = " | ".join(f"*{each}*" for each in quoted)
    annotations = (
        f"\t\t\tcase $line in\n\t\t\t\t{patterns}) asks=1 ;;\n\t\t\tesac\n" if prefixes else ""
    )
    return _REFUSAL.rstrip("\n").replace("@ANNOTATIONS@", annotations)
