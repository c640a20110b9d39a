"""Disks that are full, read-only or noexec: real ones, in the test's own mount namespace."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.faults import trees
from tests.faults.conftest import Bench
from tests.faults.site import ENVIRONMENT, Run
from tests.faults.stops import Room, room, stopped
from tests.support import fake_node
from tests.support.fake_node import needs_root

pytestmark = [
    pytest.mark.faults,
    needs_root,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
    ),
]

SMALL_DISK: Final = 'mkdir -p "$1"\nmount -t tmpfs -o size=4m tmpfs "$1"'
READ_ONLY: Final = 'mkdir -p "$1"\nmount --bind "$1" "$1"\nmount -o remount,bind,ro "$1"'
NO_PROGRAMS: Final = 'mkdir -p "$1"\nmount -t tmpfs -o noexec tmpfs "$1"'
FILLER: Final = "filler"


def run(inside: Room, *argv: str) -> Run:
    done = fake_node.cli(*argv, environment=ENVIRONMENT, prefix=inside.prefix)
    return Run(code=done.returncode, said=done.stderr)


def fill(inside: Room, directory: Path) -> None:
    """Write until there is no room left on a disk."""
    with (inside.seen(directory) / FILLER).open("wb", buffering=0) as stream:
        for size in (4096, 512, 1):
            try:
                while stream.write(bytes(size)):
                    pass
            except OSError:
                continue


def untouched(bench: Bench) -> list[str]:
    """Return what is not as in a node without us, seen from outside of a room."""
    found = trees.differences(
        bench.site.tree(), bench.library.tree(bench.library.fresh(merging=False))
    )
    mount_point = ("usr is there", "usr/local is there", "usr/local/nvidia is there")
    return [each for each in found if each not in mount_point]


def begin_with_a_place(bench: Bench) -> None:
    """Begin with an empty install directory, where something can be mounted."""
    bench.begin()
    (bench.site.real / "usr/local/nvidia").mkdir(parents=True)


def left_in(inside: Room, directory: Path) -> list[str]:
    return [path.name for path in inside.seen(directory).iterdir() if path.name != FILLER]


def test_a_full_disk_is_seen_before_anything_is_touched(bench: Bench) -> None:
    bench.begin()
    where = bench.site.node.install_dir
    with room(bench.site, SMALL_DISK, str(where)) as inside:
        fill(inside, where)
        done = run(inside, "-n", *bench.options())
        assert done.code == 4, done
        assert "KiB of free space" in done.said
        assert "nothing was changed" in done.said
        assert left_in(inside, where) == []
        assert untouched(bench) == []
        assert bench.site.starts() == 1
        (inside.seen(where) / FILLER).unlink()
        done = run(inside, "-n", *bench.options())
        assert done.code == 0, done


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("mkdir", "/.nvidia-toolkit$"),
        ("linkat", "/.state.json"),
        ("mkdir", "[.]partial$"),
        ("copy_file_range", "nvidia-container-runtime.real$"),
        ("copy_file_range", "libnvidia-container-go"),
        ("fchmod", "nvidia-container-cli$"),
        ("rename", "[.]partial ->"),
        ("symlink", "toolkit-next$"),
        ("renameat2", "/config.toml"),
        ("pidfd_send_signal", ""),
    ],
)
def test_a_disk_that_fills_up_on_the_way_leaves_the_node_as_it_was_or_done(
    bench: Bench, name: str, about: str
) -> None:
    begin_with_a_place(bench)
    call = bench.call(name, about)
    where = bench.site.node.install_dir
    with room(bench.site, SMALL_DISK, str(where)) as inside:
        with stopped(bench.site, ["-n", *bench.options()], call, prefix=inside.prefix) as run_of_it:
            fill(inside, where)
            done = run_of_it.go_on()
        bench.site.settle()
        assert "Traceback" not in done.said
        if done.code in (4, 6):
            assert left_in(inside, where) == [], done
            assert untouched(bench) == [], done
        else:
            assert done.code in (0, 7), done
        (inside.seen(where) / FILLER).unlink()
        done = run(inside, "-n", *bench.options())
        assert done.code == 0, done
        assert (inside.seen(where) / "toolkit/nvidia-container-runtime").exists()
        done = run(inside, "revert", *bench.options())
        assert done.code == 0, done
        assert left_in(inside, where) == []
        assert untouched(bench) == []


@pytest.mark.parametrize("what", ["install_dir", "config"])
def test_a_read_only_mount_is_seen_before_anything_is_touched(bench: Bench, what: str) -> None:
    bench.begin()
    node = bench.site.node
    where = node.install_dir if what == "install_dir" else node.config.parent
    with room(bench.site, READ_ONLY, str(where)) as inside:
        done = run(inside, "-n", *bench.options())
    assert done.code == 4, done
    assert "on a read-only file system: nothing was changed" in done.said
    assert untouched(bench) == []
    assert bench.site.starts() == 1


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("mkdir", "[.]partial$"),
        ("symlink", "toolkit-next$"),
        ("unlink", "/etc/containerd/.config.toml"),
        ("pidfd_send_signal", ""),
    ],
)
def test_a_disk_that_becomes_read_only_on_the_way_is_no_end(
    bench: Bench, name: str, about: str
) -> None:
    begin_with_a_place(bench)
    call = bench.call(name, about)
    where = str(bench.site.node.install_dir)
    mounted = 'mount --bind "$1" "$1"'
    with room(bench.site, mounted, where) as inside:
        with stopped(bench.site, ["-n", *bench.options()], call, prefix=inside.prefix) as run_of_it:
            inside.do('mount -o remount,bind,ro "$1"', where)
            done = run_of_it.go_on()
        bench.site.settle()
        assert done.code in (0, 4, 6, 7), done
        assert "Traceback" not in done.said
        inside.do('mount -o remount,bind,rw "$1"', where)
        done = run(inside, "-n", *bench.options())
        assert done.code == 0, done
        done = run(inside, "revert", *bench.options())
        assert done.code == 0, done
    assert untouched(bench) == []


def test_a_disk_without_programs_is_seen_before_anything_is_touched(bench: Bench) -> None:
    bench.begin()
    where = bench.site.node.install_dir
    with room(bench.site, NO_PROGRAMS, str(where)) as inside:
        done = run(inside, "-n", *bench.options())
        assert done.code == 4, done
        assert "noexec" in done.said
        assert left_in(inside, where) == []
    assert untouched(bench) == []
    assert bench.site.starts() == 1


def test_a_log_on_a_full_disk_is_no_reason_to_fail(bench: Bench) -> None:
    bench.begin()
    with open("/dev/full", "wb") as full:
        words = (*bench.site.prefix, *fake_node.program("-n", *bench.options()))
        with fake_node.started(words, **ENVIRONMENT) as process:
            process.communicate()
            to_nowhere = process.returncode
        assert to_nowhere == 0
        bench.begin()
        code = subprocess.run(
            words,
            env={**ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
            check=False,
        ).returncode
    bench.site.settle()
    assert code == 0
    assert bench.site.run(["-n", *bench.options()]).said == fake_node.NOTHING_TO_DO
