"""A file of variables: read as a shell reads it, or refused line by line."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import fake_node
from toolkit.errors import UsageProblem
from toolkit.settings import env_file


def test_lines_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "driver-ready"
    path.write_text(
        "# left by the driver's validation\n\nIS_HOST_DRIVER=true\nexport"
        " NVIDIA_DRIVER_ROOT='/run/driver'\nA=\"two words\" B=1\nEMPTY=\nURL=http://x/?a=b # a"
        " comment\n",
        encoding="utf-8",
    )
    script = (
        f'. {path}; printf \'%s|\' "$IS_HOST_DRIVER" "$NVIDIA_DRIVER_ROOT" "$A" "$B" "$EMPTY"'
        ' "$URL"'
    )
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert "|".join(env_file.read(path).values()) + "|" == told


@given(
    st.dictionaries(
        st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])),
        max_size=5,
    )
)
def test_what_is_quoted_comes_back(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("v") / "file"
    path.write_text("".join(f"{n}={shlex.quote(v)}\n" for n, v in wanted.items()), encoding="utf-8")
    assert env_file.read(path) == wanted


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("A=1\nno\n1A=2\nB='open\n", encoding="utf-8")
    with pytest.raises(UsageProblem) as caught:
        env_file.read(path)
    where = f"--env-file {path}, line"
    assert caught.value.problems == (
        f"{where} 2: 'no' is not NAME=value",
        f"{where} 3: '1A=2' is not NAME=value",
        f"{where} 4: No closing quotation",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff=1", "is not valid UTF-8"),
        (b"A=" + b"x" * (1 << 20), "is larger than 1 MiB"),
    ],
    ids=["missing", "bytes", "large"],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageProblem, match=said):
        env_file.read(path)


def test_the_file_wins_over_the_environment_and_an_option_over_both(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node")
    path = tmp_path / "file"
    path.write_text("CONTAINERD_RUNTIME_CLASS=of-the-file\n", encoding="utf-8")
    environment = {"CONTAINERD_RUNTIME_CLASS": "of-the-environment", "TOOLKIT_ENV_FILE": str(path)}
    by_file = fake_node.done("plan", *node.options(), environment=environment)
    assert "runtimes.of-the-file." in by_file.stdout
    by_option = fake_node.done("plan", *node.options(runtime_class="mine"), environment=environment)
    assert "runtimes.mine." in by_option.stdout


def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node")
    ran = fake_node.cli("plan", *node.options(env_file=str(tmp_path / "no")))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert (
        ran.stderr
        == f"error: --env-file {tmp_path / 'no'} cannot be read: No such file or directory\n"
        "hint: `nvidia-toolkit --help` lists the commands and options\n"
    )
