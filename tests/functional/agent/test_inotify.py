"""The kernel's word that something changed: the real inotify on real directories."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_node import needs_root, needs_sysctl
from toolkit.agent.inotify import Watches


@pytest.fixture
def watches() -> Iterator[Watches]:
    watches = Watches()
    yield watches
    watches.close()


def heard(watches: Watches, seconds: float = 1) -> bool:
    """Wait for an event as the daemon does, and tell whether it matters."""
    poll = select.poll()
    poll.register(watches.fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000) and watches.changed():
            return True
    return False


def replaced(path: Path) -> None:
    aside = path.with_name("aside")
    aside.write_text("new", encoding="utf-8")
    aside.rename(path)


def written(path: Path) -> None:
    path.write_text("new", encoding="utf-8")


def removed(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def shut(path: Path) -> None:
    path.chmod(0o600)


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "change", [replaced, written, removed, moved, shut, linked], ids=lambda c: c.__name__
)
def test_a_change_of_a_file_that_matters_is_heard(
    watches: Watches, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old", encoding="utf-8")
    watches.follow([(str(tmp_path), frozenset({"config.toml"}))])
    assert not heard(watches, 0.05)
    change(path)
    assert heard(watches)
    assert not heard(watches, 0.05)


def test_other_files_do_not_matter(watches: Watches, tmp_path: Path) -> None:
    watches.follow([(str(tmp_path), frozenset({"config.toml"}))])
    written(tmp_path / "config.toml.swp")
    (tmp_path / "config.toml.swp").read_text(encoding="utf-8")
    assert not heard(watches, 0.1)


def test_where_all_names_matter_each_does(watches: Watches, tmp_path: Path) -> None:
    watches.follow([(str(tmp_path), None)])
    written(tmp_path / "anything")
    assert heard(watches)


def test_reading_is_no_change(watches: Watches, tmp_path: Path) -> None:
    written(tmp_path / "config.toml")
    watches.follow([(str(tmp_path), None)])
    (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir())
    assert not heard(watches, 0.1)


def test_a_directory_that_goes_is_a_change(watches: Watches, tmp_path: Path) -> None:
    below = tmp_path / "conf.d"
    below.mkdir()
    watches.follow([(str(below), frozenset({"99-nvidia.toml"}))])
    below.rmdir()
    assert heard(watches)


def test_what_is_not_followed_any_more_is_not_heard(watches: Watches, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    watches.follow([(str(one), None)])
    watches.follow([(str(other), None)])
    written(one / "x")
    assert not heard(watches, 0.1)
    written(other / "x")
    assert heard(watches)


def test_two_names_of_one_directory_are_one(watches: Watches, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    watches.follow(
        [(str(tmp_path / "there"), frozenset({"a"})), (str(tmp_path / "link"), frozenset({"b"}))]
    )
    for name in ("a", "b"):
        written(tmp_path / "there" / name)
        assert heard(watches)


def test_what_is_missing_is_lost_and_said(watches: Watches, tmp_path: Path) -> None:
    watches.follow([(str(tmp_path / "gone"), None), (str(tmp_path), None)])
    assert watches.lost == {f"{tmp_path / 'gone'}": errno.ENOENT}
    assert watches.problems() == [f"cannot watch {tmp_path / 'gone'}: No such file or directory"]
    written(tmp_path / "x")
    assert heard(watches)


def test_a_file_is_no_directory_to_follow(watches: Watches, tmp_path: Path) -> None:
    written(tmp_path / "x")
    watches.follow([(str(tmp_path / "x"), None)])
    assert watches.problems() == [f"cannot watch {tmp_path / 'x'}: Not a directory"]


def test_more_events_than_the_kernel_keeps_are_a_change(watches: Watches, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    if limit > 20000:
        pytest.skip(f"this kernel keeps {limit} events")
    watches.follow([(str(tmp_path), frozenset({"never"}))])
    for number in range(limit // 2 + 10):
        os.close(os.open(tmp_path / f"{number % 7}-{number}", os.O_CREAT | os.O_WRONLY))
    assert heard(watches)


@needs_root
def test_what_is_watched_can_be_unmounted(watches: Watches, tmp_path: Path) -> None:
    """An open handle would keep the node's administrator from it."""
    script = (
        "import subprocess, sys; from toolkit.agent.inotify import Watches; w = Watches();"
        "subprocess.run(['mount', '-t', 'tmpfs', 'x', sys.argv[1]], check=True);"
        "w.follow([(sys.argv[1], None)]); assert not w.lost, w.lost;"
        "subprocess.run(['umount', sys.argv[1]], check=True); assert w.changed()"
    )
    python = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", *python], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the kernel's limits ------------------------------------------------------------------------

LIMITED = """
import os, sys
from pathlib import Path
from toolkit.agent.inotify import Watches

def allow(what, number):
    Path(f"/proc/sys/user/max_inotify_{what}").write_text(f"{number}\\n")

top = Path(sys.argv[1])
for name in "abcdefg":
    (top / name).mkdir()
def paths(names):
    return [(str(top / name), None) for name in names]
"""


def limited(script: str, top: Path) -> None:
    """Run a script in a user namespace: it can set inotify limits that the kernel enforces."""
    python = [sys.executable, "-c", f"{LIMITED}{script}", str(top)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *python],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@needs_root
@needs_sysctl
def test_a_limit_of_watches_names_the_sysctl_and_what_is_not_watched(tmp_path: Path) -> None:
    limited(
        """
allow("watches", 2)
w = Watches()
w.follow(paths("abcdefg"))
shown = ", ".join(str(top / name) for name in "cde")
assert w.problems() == [
    f"cannot watch {shown} and 2 more: the limit of inotify watches is reached"
    " (raise the sysctl fs.inotify.max_user_watches)"
], w.problems()
(top / "a/x").touch()
assert w.changed()
allow("watches", 100)
w.follow(paths("abcdefg"))
assert (w.lost, w.problems()) == ({}, [])
(top / "g/x").touch()
assert w.changed()
""",
        tmp_path,
    )


@needs_root
@needs_sysctl
def test_watches_that_are_not_needed_any_more_make_room_for_others(tmp_path: Path) -> None:
    limited(
        """
allow("watches", 2)
w = Watches()
w.follow(paths("ab"))
w.follow(paths("bc"))
assert w.lost == {}, w.lost
(top / "a/x").touch()
assert not w.changed()
(top / "c/x").touch()
assert w.changed()
""",
        tmp_path,
    )


@needs_root
@needs_sysctl
def test_without_an_instance_each_call_tries_to_get_one(tmp_path: Path) -> None:
    limited(
        """
allow("instances", 0)
w = Watches()
w.follow(paths("ab"))
assert w.fd < 0
assert w.problems() == [
    f"cannot watch {top}/a, {top}/b: the limit of inotify instances is reached"
    " (raise the sysctl fs.inotify.max_user_instances)"
], w.problems()
assert not w.changed()
allow("instances", 1)
w.follow(paths("ab"))
assert w.fd >= 0 and w.lost == {}
(top / "b/x").touch()
assert w.changed()
w.close()
""",
        tmp_path,
    )
