"""The wrappers of the toolkit's programs: static programs, or shell scripts that do the same.

Every start of a container runs a wrapper several times, so wrappers do not fork: they check for the
driver, in a script with a shell built-in, and end with `exec`. docs/internals/wrappers.md says why
there are any.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from toolkit.artifacts import static_wrapper, toolkit_config
from toolkit.artifacts.static_wrapper import Wrapper

SHELL: Final = "/bin/sh"
"""The node's shell, which a script needs."""
_SHEBANG: Final = f"#!{SHELL}"

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


def describe(
    program: str,
    toolkit: str,
    *,
    low_level: str | None,
    refuses: bool = False,
    prefixes: Sequence[str] = (),
) -> Wrapper:
    """Return the wrapper of a program, whose binary is `PROGRAM.real` in the same directory.

    `toolkit` is the node path of that directory. `low_level` is the program that is executed
    instead while the driver is not loaded: the node's low-level runtime, as its configuration names
    it; None for no such check. With `refuses`, containers that request GPUs are refused then, also
    if they request them by an annotation with one of `prefixes`.
    """
    has_check = low_level is not None
    return Wrapper(
        real=f"{toolkit}/{program}.real",
        sets=(
            ()
            if program in {"nvidia-ctk", "nvidia-container-cli"}
            else (("NVIDIA_CTK_CONFIG_FILE_PATH", f"{toolkit}/{toolkit_config.CONFIG}"),)
        ),
        prepends=(
            *((("LD_LIBRARY_PATH", toolkit),) if program == "nvidia-container-cli" else ()),
            ("PATH", toolkit),
        ),
        low_level=low_level,
        signs=DRIVER_SIGNS if has_check else (),
        refuses=refuses and has_check,
        prefixes=tuple(prefixes) if refuses and has_check else (),
    )


def render(wrapper: Wrapper, template: bytes | None = None) -> bytes:
    """Return a wrapper as a file: a static program made of `template`, or else a script.

    It is a script without a template, and for settings that a program cannot have.
    """
    static = static_wrapper.render(wrapper, template) if template is not None else None
    return script(wrapper) if static is None else static


def script(wrapper: Wrapper) -> bytes:
    """Return a wrapper as a script for the node's shell."""
    lines = [_SHEBANG]
    if wrapper.low_level is not None:
        # Nothing is printed: the output of `create` would become part of the container's output.
        lines += [
            f"if {' && '.join(f'[ ! -e {shlex.quote(sign)} ]' for sign in wrapper.signs)}; then",
            *([_refusal(wrapper.prefixes)] if wrapper.refuses else []),
            f'\texec {shlex.quote(wrapper.low_level)} "$@"',
            "fi",
        ]
    for name, value in wrapper.sets:
        lines += [f"{name}={shlex.quote(value)}", f"export {name}"]
    for name, value in wrapper.prepends:
        lines += [f'{name}={shlex.quote(value)}"${{{name}:+:${name}}}"', f"export {name}"]
    lines.append(f'exec {shlex.quote(wrapper.real)} "$@"')
    return "\n".join([*lines, ""]).encode()


def is_script(content: object) -> bool:
    """Return whether the content of a file is that of a wrapper that needs the node's shell."""
    return isinstance(content, bytes) and content.startswith(_SHEBANG.encode())


def _refusal(prefixes: Sequence[str]) -> str:
    quoted = (shlex.quote(f'"{prefix}') for prefix in prefixes)
    patterns = " | ".join(f"*{each}*" for each in quoted)
    annotations = (
        f"\t\t\tcase $line in\n\t\t\t\t{patterns}) asks=1 ;;\n\t\t\tesac\n" if prefixes else ""
    )
    return _REFUSAL.rstrip("\n").replace("@ANNOTATIONS@", annotations)
