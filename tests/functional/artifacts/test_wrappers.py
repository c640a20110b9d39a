"""The wrappers pass everything on, fork nothing, and do without the driver if it is absent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runtimes import edits
from tests.support import fake_node, programs
from toolkit.artifacts import static_wrapper, toolkit_config, wrappers
from toolkit.errors import NodeConfigError

STATIC: Final = ("static",)
"""In place of a shell: the wrapper is not a script but a static program."""
SHELLS: Final = [
    *(
        pytest.param((shell, *applet), marks=fake_node.needs_program(shell, package=shell))
        for shell, *applet in (("dash",), ("busybox", "sh"))
    ),
    pytest.param(STATIC),
]
FORMS: Final = ("dash", "busybox", "static")
STRANGE: Final = 'install dir\'s "quoted" $HOME `id` \\ äö'
RUNTIMES: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
)
# Prints its own name, its arguments and what a wrapper sets, then ends as it is told.
_REAL: Final = """#!/bin/sh
printf '%s\\0' "$0" "$@"
printf '%s\\0' "$PATH" "${LD_LIBRARY_PATH-unset}" "${NVIDIA_CTK_CONFIG_FILE_PATH-unset}" > "$SEEN"
exit "${WANTED:-0}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A wrapper with its real program beside it, and how it is run.

    `script` and `static` are its two forms. `path` is where the installer would put it.
    """

    path: Path
    script: Path
    static: Path
    seen: Path

    def argv(self, by: tuple[str, ...]) -> list[str]:
        """Return the words that start the form that `by` says, behind those that come before."""
        if by[-1:] == STATIC:
            return [*by[:-1], str(self.static)]
        return [*by, str(self.script)]

    def run(self, *words: str, by: tuple[str, ...] = ("sh",), **environment: str) -> Ran:
        done = subprocess.run(
            [*self.argv(by), *words],
            env={"PATH": "/usr/bin:/bin", "SEEN": str(self.seen), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
        out = done.stdout.decode().split("\0")
        told = self.seen.read_text(encoding="utf-8").split("\0") if self.seen.exists() else []
        return Ran(
            code=done.returncode,
            program=out[0],
            words=tuple(out[1:-1]),
            err=done.stderr.decode(),
            environment=dict(
                zip(("PATH", "LD_LIBRARY_PATH", "NVIDIA_CTK_CONFIG_FILE_PATH"), told, strict=False)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of it."""

    code: int
    program: str
    words: tuple[str, ...]
    err: str
    environment: Mapping[str, str]


def install(
    toolkit: Path,
    program: str = "nvidia-container-runtime",
    *,
    driver: bool = True,
    low_level: str = "",
    refuses: bool = False,
) -> Installed:
    """Write a wrapper as the installer does; the driver is present or not, as the test says."""
    toolkit.mkdir(parents=True, exist_ok=True)
    fake_node.write_program(toolkit / f"{program}.real", _REAL)
    named = (low_level or str(toolkit / "low level")) if program in RUNTIMES else None
    if named is not None and not low_level:
        fake_node.write_program(Path(named), _REAL)
    wrapper = wrappers.describe(
        program, str(toolkit), low_level=named, refuses=refuses, prefixes=("cdi.k8s.io/", "it's/")
    )
    module = toolkit.parent / "module"
    if driver:
        module.mkdir(exist_ok=True)
    if program in RUNTIMES:
        assert wrapper.signs == wrappers.DRIVER_SIGNS
        # None of them counts what this machine has.
        names = ("module", *(sign.rpartition("/")[2] for sign in wrapper.signs[1:]))
        wrapper = replace(wrapper, signs=tuple(str(toolkit.parent / name) for name in names))
    forms = {
        "script": wrappers.script(wrapper),
        "static": static_wrapper.render(wrapper, programs.wrapper()),
    }
    for form, content in forms.items():
        assert content is not None
        (toolkit / f"{program}.{form}").write_bytes(content)
        (toolkit / f"{program}.{form}").chmod(0o755)
    return Installed(
        path=toolkit / program,
        script=toolkit / f"{program}.script",
        static=toolkit / f"{program}.static",
        seen=toolkit.parent / "seen",
    )


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return install(tmp_path / "toolkit")


# --- what passes through ------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("",),
        ("", "", "x", ""),
        ("a b", " leading", "trailing "),
        ("it's", 'say "hi"', "back\\slash", "`id`", "$HOME", "${PATH}", "$(id)"),
        ("two\nlines", "tab\t", "\n"),
        ("*", "?", "[a]", "~", "~root", "{a,b}"),
        ("-n", "--", "-", "-e", "--root=/run", ";", "&", "|", ">x", "#"),
        ("äöü", "\N{SNOWMAN}"),
        ("create", "--bundle", "/run/a b", "id"),
    ],
    ids=[
        "none",
        "empty",
        "some empty",
        "spaces",
        "quotes",
        "newlines",
        "globs",
        "signs",
        "unicode",
        "create",
    ],
)
def test_arguments_pass_untouched(
    installed: Installed, shell: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ran = installed.run(*words, by=shell)
    assert (ran.code, ran.words, ran.err) == (0, words, "")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("wrapper") / "toolkit")


_WORDS: Final = some.text(
    some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10
)


@settings(max_examples=50, deadline=None)
@given(words=some.lists(_WORDS, max_size=4))
def test_any_arguments_pass_untouched(shared: Installed, words: list[str]) -> None:
    assert shared.run(*words).words == tuple(words)
    assert shared.run(*words, by=STATIC).words == tuple(words)


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("program", [p for p in fake_node.PROGRAMS if p != "nvidia-cdi-hook"])
def test_a_strange_install_directory_is_no_obstacle(
    tmp_path: Path, program: str, shell: tuple[str, ...]
) -> None:
    toolkit = tmp_path / STRANGE / "toolkit"
    ran = install(toolkit, program).run("a b", by=shell)
    assert (ran.code, ran.program, ran.words) == (0, f"{toolkit}/{program}.real", ("a b",))
    assert ran.environment["PATH"] == f"{toolkit}:/usr/bin:/bin"


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("driver", [True, False], ids=["with the driver", "without"])
@pytest.mark.parametrize("code", [0, 1, 3, 125, 255])
def test_the_exit_status_passes_through(
    tmp_path: Path, code: int, shell: tuple[str, ...], *, driver: bool
) -> None:
    assert (
        install(tmp_path / "toolkit", driver=driver).run("create", WANTED=str(code), by=shell).code
        == code
    )


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
def test_a_missing_program_is_told_as_by_a_shell(
    installed: Installed, shell: tuple[str, ...]
) -> None:
    installed.path.with_name("nvidia-container-runtime.real").unlink()
    ran = installed.run("create", by=shell)
    assert ran.code == 127
    assert "nvidia-container-runtime.real" in ran.err


# --- what it sets -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize(
    ("program", "library_path", "config"),
    [
        ("nvidia-container-runtime", False, True),
        ("nvidia-container-runtime.cdi", False, True),
        ("nvidia-container-runtime.legacy", False, True),
        ("nvidia-container-runtime-hook", False, True),
        ("nvidia-container-cli", True, False),
        ("nvidia-ctk", False, False),
    ],
)
def test_each_program_gets_what_it_needs(
    tmp_path: Path, program: str, shell: tuple[str, ...], *, library_path: bool, config: bool
) -> None:
    toolkit = tmp_path / "toolkit"
    ran = install(toolkit, program).run(by=shell)
    assert ran.environment == {
        "PATH": f"{toolkit}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(toolkit) if library_path else "unset",
        "NVIDIA_CTK_CONFIG_FILE_PATH": (
            f"{toolkit}/.config/nvidia-container-runtime/config.toml" if config else "unset"
        ),
    }


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
def test_a_library_path_that_is_set_comes_second(tmp_path: Path, shell: tuple[str, ...]) -> None:
    ran = install(tmp_path / "toolkit", "nvidia-container-cli").run(
        LD_LIBRARY_PATH="/opt/lib", by=shell
    )
    assert ran.environment["LD_LIBRARY_PATH"] == f"{tmp_path}/toolkit:/opt/lib"


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
def test_an_empty_path_does_not_put_the_working_directory_on_it(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    shell = (shutil.which(shell[0]) or shell[0], *shell[1:])
    ran = install(tmp_path / "toolkit").run(by=shell, PATH="")
    assert ran.environment["PATH"] == f"{tmp_path}/toolkit"


# --- without the driver -------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("program", RUNTIMES)
def test_without_the_driver_the_low_level_runtime_runs(
    tmp_path: Path, program: str, shell: tuple[str, ...]
) -> None:
    ran = install(tmp_path / "toolkit", program, driver=False).run("state", "a b", "", by=shell)
    assert (ran.program, ran.words, ran.err) == (
        f"{tmp_path}/toolkit/low level",
        ("state", "a b", ""),
        "",
    )


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize(
    "program", [p for p in fake_node.PROGRAMS if p not in {*RUNTIMES, "nvidia-cdi-hook"}]
)
def test_the_other_programs_run_whether_or_not_there_is_a_driver(
    tmp_path: Path, program: str, shell: tuple[str, ...]
) -> None:
    ran = install(tmp_path / "toolkit", program, driver=False).run("x", by=shell)
    assert ran.program == f"{tmp_path}/toolkit/{program}.real"


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize(
    "words",
    [
        ("create", "id"),
        ("--root", "/run/runc", "create", "--bundle", "b", "id"),
        ("run", "id"),
        ("state", "id"),
        ("delete", "--force", "id"),
        (),
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_a_wrapper_says_nothing_of_its_own(
    tmp_path: Path, words: tuple[str, ...], shell: tuple[str, ...]
) -> None:
    # What is said on `create` ends up in the container's output, and callers parse `state`.
    ran = install(tmp_path / "toolkit", driver=False).run(*words, by=shell)
    assert (ran.words, ran.err) == (words, "")


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
def test_a_low_level_runtime_by_name_is_looked_up_on_the_callers_path(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    (tmp_path / "bin").mkdir()
    fake_node.write_program(tmp_path / "bin/crun", _REAL)
    ran = install(tmp_path / "toolkit", driver=False, low_level="crun").run(
        "create", PATH=f"{tmp_path}/bin:/usr/bin:/bin", by=shell
    )
    assert (ran.code, ran.program) == (0, f"{tmp_path}/bin/crun")


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("sign", ["nvgpu", "dxg"])
@pytest.mark.parametrize("refuses", [False, True])
def test_a_tegra_and_wsl2_have_a_driver_without_the_module(
    tmp_path: Path, sign: str, shell: tuple[str, ...], *, refuses: bool
) -> None:
    wrapped = install(tmp_path / "toolkit", driver=False, refuses=refuses)
    (tmp_path / sign).touch()
    place = bundle(tmp_path, ASKING["variable"])
    ran = wrapped.run("create", "--bundle", str(place), "id", by=shell)
    assert (ran.code, ran.program) == (0, str(tmp_path / "toolkit/nvidia-container-runtime.real"))


# --- without the driver, where that is asked for -------------------------------------------------


def bundle(tmp_path: Path, text: str) -> Path:
    place = tmp_path / "a bundle"
    place.mkdir()
    (place / "config.json").write_text(text, encoding="utf-8")
    return place


def oci(
    env: list[str], annotations: Mapping[str, str] | None = None, mounts: tuple[str, ...] = ()
) -> str:
    """Return an OCI configuration as containerd writes it: one line without an end."""
    return json.dumps(
        {
            "process": {"args": ["sh"], "env": ["PATH=/bin", *env]},
            "annotations": annotations or {},
            "mounts": [{"destination": each, "source": "/dev/null"} for each in mounts],
        },
        separators=(",", ":"),
    )


MOUNTS: Final = "/var/run/nvidia-container-devices"
ASKING: Final = {
    "variable": oci(["NVIDIA_VISIBLE_DEVICES=all"]),
    "variable with one": oci(["NVIDIA_VISIBLE_DEVICES=GPU-1234"]),
    "annotation": oci([], {"cdi.k8s.io/x": "nvidia.com/gpu=0"}),
    "annotation of a strange prefix": oci([], {"it's/x": "nvidia.com/gpu=0"}),
    "mount": oci([], mounts=("/var/run/nvidia-container-devices/all",)),
    "variable beside a mount `void`": oci(
        ["NVIDIA_VISIBLE_DEVICES=all"], mounts=(f"{MOUNTS}/void",)
    ),
    "annotation beside a mount `void`": oci(
        [], {"cdi.k8s.io/x": "a=0"}, mounts=(f"{MOUNTS}/void",)
    ),
    "indented": json.dumps(json.loads(oci(["NVIDIA_VISIBLE_DEVICES=all"])), indent=2) + "\n",
}
NOT_ASKING: Final = {
    "sandbox": oci([]),
    "void": oci(["NVIDIA_VISIBLE_DEVICES=void"]),
    "none": oci(["NVIDIA_VISIBLE_DEVICES=none"]),
    "empty": oci(["NVIDIA_VISIBLE_DEVICES="]),
    "a mount `void`": oci([], mounts=(f"{MOUNTS}/void",)),
    "a mount `void` before others": oci([], mounts=(f"{MOUNTS}/void", f"{MOUNTS}/0")),
    "a mount `void` after others, indented": json.dumps(
        json.loads(oci([], mounts=(f"{MOUNTS}/0", f"{MOUNTS}/void"))), indent=2
    ),
    "capabilities alone": oci(["NVIDIA_DRIVER_CAPABILITIES=all"]),
    "another annotation": oci([], {"io.kubernetes.cri.container-type": "sandbox"}),
}
_WHY: Final = (
    "this container requests GPUs, but the NVIDIA driver is not loaded on this node"
    " (refused because of --require-driver)"
)


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("program", RUNTIMES)
@pytest.mark.parametrize("text", ASKING.values(), ids=ASKING)
def test_a_container_that_asks_for_gpus_is_refused(
    tmp_path: Path, text: str, program: str, shell: tuple[str, ...]
) -> None:
    wrapped = install(tmp_path / "toolkit", program, driver=False, refuses=True)
    place, log = bundle(tmp_path, text), tmp_path / "log.json"
    words = ("--root", "/run/create", "--log", str(log), "--log-format", "json", "create")
    ran = wrapped.run(*words, "--bundle", str(place), "--pid-file", "/run/pid", "id", by=shell)
    assert (ran.code, ran.program, ran.err) == (1, "", f"{_WHY}\n")
    # containerd looks for the reason there, and says it to whoever wanted the container.
    assert json.loads(log.read_text(encoding="utf-8")) == {"level": "error", "msg": _WHY}


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("text", NOT_ASKING.values(), ids=NOT_ASKING)
def test_a_container_that_asks_for_no_gpu_is_passed_on(
    tmp_path: Path, text: str, shell: tuple[str, ...]
) -> None:
    wrapped = install(tmp_path / "toolkit", driver=False, refuses=True)
    words = ("create", f"--bundle={bundle(tmp_path, text)}", "id")
    ran = wrapped.run(*words, by=shell)
    assert (ran.program, ran.words, ran.err) == (f"{tmp_path}/toolkit/low level", words, "")


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize(
    "words",
    [
        ("state", "create"),
        ("delete", "--force", "run"),
        ("kill", "id", "9"),
        ("start", "id"),
        ("create", "id"),
    ],
    ids=" ".join,
)
def test_what_makes_no_container_is_passed_on(
    tmp_path: Path, words: tuple[str, ...], shell: tuple[str, ...]
) -> None:
    ran = install(tmp_path / "toolkit", driver=False, refuses=True).run(*words, by=shell)
    assert (ran.program, ran.words, ran.err) == (f"{tmp_path}/toolkit/low level", words, "")


@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
def test_with_the_driver_nobody_looks(tmp_path: Path, shell: tuple[str, ...]) -> None:
    wrapped = install(tmp_path / "toolkit", refuses=True)
    ran = wrapped.run(
        "create", "--bundle", str(bundle(tmp_path, ASKING["variable"])), "id", by=shell
    )
    assert ran.program == f"{tmp_path}/toolkit/nvidia-container-runtime.real"


# --- what it costs ------------------------------------------------------------------------------


@fake_node.needs_program("strace", package="strace")
@pytest.mark.parametrize("driver", [True, False], ids=["with the driver", "without"])
@pytest.mark.parametrize("shell", SHELLS, ids=FORMS)
@pytest.mark.parametrize("refuses", [False, True], ids=["passing", "refusing"])
def test_it_forks_nothing(
    tmp_path: Path, shell: tuple[str, ...], *, driver: bool, refuses: bool
) -> None:
    log = tmp_path / "strace"
    wrapped = install(tmp_path / "toolkit", driver=driver, refuses=refuses)
    place = bundle(tmp_path, NOT_ASKING["void"])
    for end in ("nvidia-container-runtime.real", "low level"):
        fake_node.write_program(wrapped.path.with_name(end), "#!/bin/sh\nexit 7\n")
    traced = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=execve,clone,clone3,fork,vfork")
    assert wrapped.run("create", "--bundle", str(place), "id", by=(*traced, *shell)).code == 7
    calls = re.findall(r"^\d+\s+(\w+)\(", log.read_text(encoding="utf-8"), re.MULTILINE)
    assert calls == ["execve", "execve"]


# --- the toolkit's own configuration ------------------------------------------------------------


_ASKED: Final[Mapping[tuple[str, ...], Any]] = {
    ("accept-nvidia-visible-devices-as-volume-mounts",): True,
    ("nvidia-container-cli", "root"): "/run/nvidia/driver",
    ("nvidia-container-runtime", "runtimes"): ["/usr/bin/runc", "crun"],
    ("nvidia-container-runtime", "modes", "cdi", "default-kind"): "management.nvidia.com/gpu",
}


def test_options_land_over_the_defaults() -> None:
    tree = tomllib.loads(toolkit_config.configuration(None, "config.toml", _ASKED).decode())
    for key, item in _ASKED.items():
        assert edits.value(tree, key) == item
    assert tree["nvidia-container-runtime"]["mode"] == "auto"
    assert tree["disable-require"] is False
    assert tree["nvidia-container-runtime"]["modes"]["cdi"]["spec-dirs"] == [
        "/etc/cdi",
        "/var/run/cdi",
    ]


def test_a_second_time_not_one_byte_changes() -> None:
    once = toolkit_config.configuration(None, "config.toml", _ASKED)
    assert toolkit_config.configuration(once, "config.toml", _ASKED) == once


def test_what_a_user_wrote_stays() -> None:
    mine = (
        b'# mine\ndisable-require = true\nmy-own = "x" # why\n\n'
        b'[nvidia-container-cli]\nldcache = "/my/cache"\n'
    )
    after = toolkit_config.configuration(mine, "config.toml", _ASKED)
    tree = tomllib.loads(after.decode())
    assert after.startswith(b"# mine\n")
    assert b'my-own = "x" # why\n' in after
    assert (tree["disable-require"], tree["my-own"]) == (True, "x")
    assert tree["nvidia-container-cli"]["ldcache"] == "/my/cache"
    assert tree["nvidia-container-cli"]["root"] == "/run/nvidia/driver"


@pytest.mark.parametrize("newer", [b"features = {\n  x = true,\n}\n", b'my-own = "\\xfc"\n'])
def test_toml_that_the_toolkit_s_programs_do_not_read_is_refused(newer: bytes) -> None:
    with pytest.raises(
        NodeConfigError, match=r"^config\.toml: the toolkit's programs do not read TOML 1\.1"
    ):
        toolkit_config.configuration(newer, "config.toml", _ASKED)


def test_what_is_no_toml_is_named_with_its_place() -> None:
    with pytest.raises(NodeConfigError, match=r"^config\.toml:2:5: "):
        toolkit_config.configuration(b"a = 1\nb = \n", "config.toml", _ASKED)
