"""What a release is made of, without making one: tests/cluster/test_release.py makes one."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.support import images
from toolkit import __version__
from tools import archives, bills, emulation, licenses, release, source

ROOT: Final = Path(__file__).resolve().parents[2]


def test_the_version_is_one_of_a_release_for_python_and_for_helm() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", __version__)


def test_the_changelog_has_the_version_with_a_date_and_a_section_for_what_is_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [first, second, *_] = re.findall(r"^## \[(.+)$", text, re.MULTILINE)
    assert first == "Unreleased]"
    assert re.fullmatch(
        rf"{re.escape(__version__)}\] - (\d{{4}}-\d\d-\d\d|not released yet)", second
    )


def test_every_top_level_name_is_in_the_source_archive() -> None:
    text = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<= )[\w./-]+", re.sub(r"^(#|global-).*$", "", text, flags=re.M)))
    assert {name.partition("/")[0] for name in source.listed(ROOT)} - {"pyproject.toml"} <= named


def test_an_unpacked_source_archive_has_the_files_that_git_tracks(tmp_path: Path) -> None:
    exported = release.export(tmp_path / "source", is_dirty_allowed=True)
    for name in ("PKG-INFO", "build/lib/x.py", "toolkit/__pycache__/x.pyc", "setup.cfg"):
        (exported.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (exported.directory / name).touch()
    assert source.listed(exported.directory) == source.listed(ROOT)


def test_an_archive_is_the_same_whatever_the_times_modes_and_order(tmp_path: Path) -> None:
    for name, mode, files in (("a", 0o644, ("x", "y/z")), ("b", 0o600, ("y/z", "x"))):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(file, encoding="utf-8")
            (tmp_path / name / file).chmod(mode)
        archives.pack(tmp_path / name, tmp_path / f"{name}.tar.gz", 12345, top="t/")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames() == ["t/x", "t/y", "t/y/z"]
        assert {each.mtime for each in archive} == {12345}
    (tmp_path / "a/link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        archives.pack(tmp_path / "a", tmp_path / "c.tar", 0)


@pytest.mark.parametrize("epoch", [0, 1700000000])
def test_what_is_compressed_has_the_same_header_with_every_python(epoch: int) -> None:
    """RFC 1952: no name, the time, the slowest method, and no word of the system."""
    made = archives.compressed(b"text", epoch)
    assert made[:10] == b"\x1f\x8b\x08\x00" + epoch.to_bytes(4, "little") + b"\x02\xff"
    assert gzip.decompress(made) == b"text"


def test_the_bill_of_materials_has_every_locked_wheel_with_its_hashes() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    found = json.loads(bills.bill(text, "1.2.3", 1700000000))
    assert found["metadata"]["component"]["version"] == "1.2.3"
    assert found["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    hashes = {
        each["name"]: [one["content"] for one in each["hashes"]] for each in found["components"]
    }
    assert set(hashes) == set(re.findall(r"^([\w-]+)==", text, re.MULTILINE))
    assert sorted(one for each in hashes.values() for one in each) == sorted(
        re.findall(r"sha256:(\w+)", text)
    )
    assert bills.bill(text, "1.2.3", 1700000000) == bills.bill(text, "1.2.3", 1700000000)
    named = {each["name"]: each["licenses"][0]["expression"] for each in found["components"]}
    assert (named["click"], named["hyperframe"]) == ("BSD-3-Clause", "MIT")
    assert found["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]


def wheel(home: Path, name: str, said: str) -> None:
    directory = home / f"{name}-1.dist-info"
    (directory / "licenses").mkdir(parents=True)
    (directory / "licenses/LICENSE.txt").write_text("rights", encoding="utf-8")
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{said}\n"
    (directory / "METADATA").write_text(metadata, encoding="utf-8")


def test_a_package_names_every_license_in_it_and_where_its_text_is(tmp_path: Path) -> None:
    wheel(tmp_path, "a", "License-Expression: MIT AND Apache-2.0")
    wheel(tmp_path, "b", "License: BSD-3-Clause\n        \n        Copyright (c)")
    found = licenses.bundled(tmp_path)
    assert licenses.together(each for each, _ in found.values()) == (
        "Apache-2.0 AND BSD-3-Clause AND MIT"
    )
    text = licenses.statement("own\n", tmp_path, "/usr/lib/x")
    assert text.startswith("own\n")
    assert "\na-1: MIT AND Apache-2.0\n    /usr/lib/x/a-1.dist-info/licenses/LICENSE.txt\n" in text
    wheel(tmp_path, "c", "License: as you like")
    with pytest.raises(licenses.LicenseError, match="license of c 1 is called as you like: add"):
        licenses.bundled(tmp_path)


@pytest.mark.parametrize("has_sums", [False, True])
def test_a_release_never_replaces_a_directory_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, has_sums: bool
) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    if has_sums:
        (tmp_path / "SHA256SUMS").write_text("00  release.tar.gz\n", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    words = ["--uncommitted", "--only=manifests", f"--output={tmp_path}"]
    assert release.main(words) == 1
    assert capsys.readouterr().err == (
        f"tools.release: {tmp_path} holds something else than a release: name another --output\n"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_an_image_that_cannot_be_built_here_ends_a_release_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(emulation, "BINFMT", tmp_path)
    monkeypatch.setattr(emulation, "FORMATS", tmp_path)
    words = ["--uncommitted", f"--output={tmp_path / 'output'}"]
    assert release.main(words) == 1
    (tmp_path / "bin/buildah").symlink_to("/bin/true")
    assert release.main(words) == 1
    [other] = {"x86_64", "aarch64"} - {os.uname().machine} or {"aarch64"}
    named = {machine: name for name, machine in emulation.MACHINES.items()}[other]
    assert capsys.readouterr().err == (
        "tools.release: the image needs buildah: apt-get install buildah\n"
        f"tools.release: the image for {named}: this machine runs no programs for {named}: apt-get"
        f" install qemu-user-static; or leave {named} out with --architecture\n"
    )
    assert not (tmp_path / "output").exists()


def test_the_sums_are_those_of_sha256sum_and_cover_every_file(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert release.main(["--uncommitted", "--only=manifests", f"--output={output}"]) == 0
    assert release.main(["--uncommitted", "--only=bill", f"--output={output}"]) == 0  # replaced
    [bill] = sorted(output.glob("*.json"))
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", release.SUMS],
        cwd=output, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"{bill.name}: OK\n"


def test_a_module_that_is_named_like_ours_is_not_imported_in_its_place(tmp_path: Path) -> None:
    """As in a wheel: the packages are in the directory of nvidia_toolkit, others beside that."""
    site = tmp_path / "site"
    for name in ("toolkit", "runtimes"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise SystemExit('another')", encoding="utf-8")
    for name in source.listed(ROOT, with_new=True):
        top = name.partition("/")[0]
        if top in {"nvidia_toolkit", "runtimes", "toolkit"}:
            place = site / ("" if top == "nvidia_toolkit" else "nvidia_toolkit") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "nvidia_toolkit", "--version"],
        cwd="/", env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nvidia-toolkit, version {__version__}\n"


def test_what_a_package_runs_as_root_is_a_script_that_a_shell_accepts() -> None:
    scripts = sorted((ROOT / "deploy/packages").glob("*.sh"))
    assert [script.name for script in scripts] == ["postinstall.sh", "preremove.sh"]
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
        code = re.sub(r"^\s*#.*$", "", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert "daemon-reload" not in code
        assert "enable" not in code.replace("disable", "")


def test_an_image_has_the_version_of_the_program() -> None:
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert images.IMAGE.endswith(f":{__version__}")
