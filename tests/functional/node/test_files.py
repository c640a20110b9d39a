"""A write is one step for every reader, leaves nothing behind, and a read is not fooled."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from tests.support import fake_node
from toolkit.errors import Conflict, NodeConfigError, StepError
from toolkit.node import files
from toolkit.node.files import FileMetadata

OLD: Final = b"old\n"
NEW: Final = b"new\n" * 1000

# Reads a file over and over and says each content that is neither of the two whole ones.
_READER: Final = """
import sys
path, stop, both = sys.argv[1:]
import os
whole = {b"a" * 70000, b"b" * 10}
print("reads", flush=True)
seen = set()
while not os.path.exists(stop):
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        print("MISSING")
        break
    seen.add(data)
    if len(seen) == 2:
        open(both, "w").close()
    if data not in whole:
        print("MIX", len(data))
        break
print(len(seen))
"""
# What a test wants done by another process, which may have other mounts.
_PUT: Final = """
import sys
from pathlib import Path
from toolkit import errors
from toolkit.node import files
path, aside = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
try:
    files.put(path, b"new", aside=aside)
except errors.ToolkitError as error:
    print(f"{error.exit_code} {error}\\n{error.hint}")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a file in a directory of its own, whose parent is free for temporary files."""
    path = tmp_path / "conf.d" / "99-nvidia.toml"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> Iterator[None]:
    """Look after each call that could show something to a reader."""
    with monkeypatch.context() as patch:
        for name in ("open", "fchmod", "fchown", "fsync", "link", "rename", "unlink", "close"):
            patch.setattr(os, name, _looking(getattr(os, name), look))
        yield


def _looking(call: Callable[..., Any], look: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*words: Any, **named: Any) -> Any:
        try:
            return call(*words, **named)
        finally:
            look()

    return wrapped


def failing(number: int, call: Callable[..., Any], matching: str = "") -> Callable[..., Any]:
    """Return a call that fails with an errno where its arguments match."""

    def wrapped(*words: Any, **named: Any) -> Any:
        if re.search(matching, " ".join(map(str, words))):
            raise OSError(number, os.strerror(number))
        return call(*words, **named)

    return wrapped


# --- put ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["beside the target", "aside"])
def test_no_reader_ever_sees_a_mix(place: Path, *, beside: bool) -> None:
    stop = place.parent.parent / "stop"
    aside = None if beside else place.parent.parent
    contents = (b"a" * 70000, b"b" * 10)
    files.put(place, contents[0])
    both = place.parent.parent / "both"
    with fake_node.started(
        [sys.executable, "-c", _READER, str(place), str(stop), str(both)]
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        turn = 0
        # Long enough for the reader to be there, however busy the machine is.
        while turn < 150 or (not both.exists() and reader.poll() is None):
            files.put(place, contents[turn % 2], aside=aside)
            turn += 1
        stop.touch()
        _, out, _ = fake_node.ended(reader)
    assert out == "2\n", "the reader saw something else than the two whole contents"


@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o640])
def test_put_gives_the_mode_whatever_the_umask_is(place: Path, mode: int, *, aside: bool) -> None:
    before = os.umask(0o077)
    try:
        files.put(place, NEW, mode=mode, aside=place.parent.parent if aside else None)
    finally:
        os.umask(before)
    assert place.read_bytes() == NEW
    assert stat.S_IMODE(place.stat().st_mode) == mode
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@fake_node.needs_root
@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
def test_put_gives_the_owner(place: Path, *, aside: bool) -> None:
    files.put(
        place,
        NEW,
        metadata=FileMetadata(owner=(1234, 4321), mode=0o640),
        aside=place.parent.parent if aside else None,
    )
    status = place.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)


@fake_node.needs_root
def test_put_keeps_a_set_user_id_bit_that_a_change_of_owner_would_clear(place: Path) -> None:
    files.put(place, NEW, metadata=FileMetadata(owner=(1234, 4321), mode=0o4755))
    assert stat.S_IMODE(place.stat().st_mode) == 0o4755


def test_put_sets_the_label_before_the_file_has_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled: list[tuple[str, bytes, bytes]] = []

    def note(_fd: int, name: str, value: bytes) -> None:
        labelled.append((name, value, place.read_bytes()))

    monkeypatch.setattr(os, "setxattr", note)
    files.put(
        place, NEW, metadata=FileMetadata(selinux=b"system_u:object_r:container_config_t:s0\0")
    )
    assert labelled == [("security.selinux", b"system_u:object_r:container_config_t:s0\0", OLD)]


ACL: Final = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000000ffffffff 10000400ffffffff 20000000ffffffff"
)
"""What `setfacl -m u::rw,u:1000:r,g::-,m::r,o::-` makes."""


@pytest.fixture
def attributed(place: Path) -> Path:
    """Return a file with extended attributes, one of them an ACL."""
    try:
        os.setxattr(place, "user.owner", b"ops")
        os.setxattr(place, "system.posix_acl_access", ACL)
    except OSError as error:
        pytest.skip(f"no attributes here: {error}")
    return place


@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
def test_put_keeps_attributes_and_the_acl_with_its_mode(attributed: Path, *, aside: bool) -> None:
    seen = files.read(attributed)
    assert seen is not None
    assert dict(seen.attributes) == {"system.posix_acl_access": ACL, "user.owner": b"ops"}
    assert seen.mode == 0o640
    metadata = FileMetadata(mode=seen.mode, owner=(seen.uid, seen.gid), attributes=seen.attributes)
    files.put(attributed, NEW, metadata=metadata, aside=attributed.parent.parent if aside else None)
    assert files.read(attributed) == replace(seen, data=NEW)


def test_put_gives_nothing_that_the_directory_would_pass_on_to_a_file_that_had_none(
    attributed: Path,
) -> None:
    os.setxattr(attributed.parent, "system.posix_acl_default", ACL)
    files.put(attributed, NEW)
    assert "system.posix_acl_access" in os.listxattr(attributed)
    files.put(attributed, NEW, metadata=FileMetadata(mode=0o640, attributes=()))
    assert os.listxattr(attributed) == []
    assert stat.S_IMODE(attributed.stat().st_mode) == 0o640


def test_what_an_overlay_notes_and_what_is_about_the_bytes_is_not_kept() -> None:
    kept = ["system.posix_acl_access", "trusted.a", "user.a"]
    others = [
        "security.ima",
        "security.capability",
        "trusted.overlay.metacopy",
        "user.overlay.origin",
    ]
    assert [name for name in (*kept, *others) if files._is_kept(name)] == kept


def test_put_does_without_attributes_where_the_file_system_has_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "setxattr", failing(errno.EOPNOTSUPP, os.setxattr))
    files.put(place, NEW, metadata=FileMetadata(attributes=(("user.owner", b"ops"),)))
    assert place.read_bytes() == NEW


def test_put_does_without_labels_where_the_file_system_has_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "setxattr", failing(errno.EOPNOTSUPP, os.setxattr))
    files.put(place, NEW, metadata=FileMetadata(selinux=b"label\0"))
    assert place.read_bytes() == NEW


def test_the_content_is_durable_before_it_has_the_name_and_the_name_after(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "content")
        real_fsync(fd)

    def rename(old: Path, new: Path) -> None:
        steps.append("rename")
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    files.put(place, NEW)
    assert steps == ["content", "rename", "directory"]


def test_aside_keeps_every_temporary_name_out_of_the_target_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[frozenset[str]] = []
    real = os.listdir
    with watched(monkeypatch, lambda: listings.append(frozenset(real(place.parent)))):
        files.put(place, NEW, aside=place.parent.parent)
    assert len(listings) > 4, "nothing was looked at"
    assert set(listings) == {frozenset({place.name})}
    assert os.listdir(place.parent.parent) == [place.parent.name]


def test_a_daemon_that_reads_every_file_sees_only_whole_ones_where_aside_is_another_file_system(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = place.parent.parent
    contents: set[bytes] = set()
    real_open, names = open, os.listdir

    def look() -> None:
        for name in names(place.parent):
            with real_open(place.parent / name, "rb") as stream:
                contents.add(stream.read())

    crosses = re.escape(f"{aside}/.{place.name}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing(errno.EXDEV, os.rename, f"^{crosses}"))
        with watched(patch, look):
            files.put(place, NEW, aside=aside)
    assert place.read_bytes() == NEW
    assert contents == {OLD, NEW}
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    assert [p.name for p in aside.iterdir()] == [place.parent.name]


@fake_node.needs_root
def test_aside_on_another_file_system_is_done_without(place: Path) -> None:
    aside = place.parent.parent / "aside"
    aside.mkdir()
    prefix = fake_node.in_mounts('mount -t tmpfs tmpfs "$1"\nshift', str(aside))
    assert _put_elsewhere(prefix, place, aside) == ""
    assert place.read_bytes() == b"new"
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@fake_node.needs_root
def test_aside_that_is_read_only_is_done_without(place: Path) -> None:
    aside = place.parent.parent / "aside"
    aside.mkdir()
    assert _put_elsewhere(fake_node.read_only(aside), place, aside) == ""
    assert place.read_bytes() == b"new"


def test_aside_that_is_absent_is_done_without(place: Path) -> None:
    files.put(place, NEW, aside=place.parent.parent / "absent")
    assert place.read_bytes() == NEW


@pytest.mark.parametrize(
    "number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL], ids=errno.errorcode.get
)
def test_put_works_on_file_systems_without_nameless_files(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    files.put(place, NEW, mode=0o640)
    assert place.read_bytes() == NEW
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
@pytest.mark.parametrize("call", ["open", "fchmod", "fsync", "rename"])
def test_a_failure_leaves_the_file_as_it_was_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str, *, aside: bool
) -> None:
    before = fake_node.snapshot(place.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.EIO, getattr(os, call)))
        with pytest.raises(StepError) as caught:
            files.put(place, NEW, aside=place.parent.parent if aside else None)
    assert str(caught.value) == f"{place} cannot be written: Input/output error"
    assert fake_node.snapshot(place.parent).keys() == before.keys()
    assert place.read_bytes() == OLD
    assert [p.name for p in place.parent.parent.iterdir()] == [place.parent.name]


@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
def test_a_last_look_keeps_the_file_as_it_was_and_nothing_else(place: Path, *, aside: bool) -> None:
    def look(path: Path) -> None:
        assert path == place
        assert place.read_bytes() == OLD
        raise Conflict("somebody was here")

    before = fake_node.snapshot(place.parent)
    with pytest.raises(Conflict, match=r"^somebody was here$"):
        files.put(place, NEW, aside=place.parent.parent if aside else None, check=look)
    assert fake_node.snapshot(place.parent).keys() == before.keys()
    assert place.read_bytes() == OLD
    assert [p.name for p in place.parent.parent.iterdir()] == [place.parent.name]


AT_THE_LAST_MOMENT: Final = b"somebody else's, written between the check and the rename"


@pytest.mark.parametrize("how", ["in place", "by rename"])
@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
@pytest.mark.parametrize("removes", [True, False], ids=["remove", "replace"])
def test_what_was_written_between_the_last_look_and_the_rename_is_put_back(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str, *, aside: bool, removes: bool
) -> None:
    """The restored file is the other program's, with its inode; nothing else is left."""
    real = files.rename
    theirs = place.stat().st_ino

    def late(source: Path, destination: Path, flags: int) -> bool:
        nonlocal theirs
        with monkeypatch.context() as patch:
            patch.setattr(files, "rename", real)
            if how == "by rename":
                other = place.with_name("other")
                other.write_bytes(AT_THE_LAST_MOMENT)
                theirs = other.stat().st_ino
                other.rename(place)
            else:
                # The lease would let an honest writer wait: this one had it open in another way.
                os.pwrite(descriptor, AT_THE_LAST_MOMENT, 0)
                os.ftruncate(descriptor, len(AT_THE_LAST_MOMENT))
        monkeypatch.setattr(files, "rename", real)
        return real(source, destination, flags)

    def look(path: Path) -> None:
        if path.read_bytes() != OLD:
            raise Conflict("somebody was here")

    descriptor = os.open(place, os.O_RDWR)
    monkeypatch.setattr(files, "rename", late)
    monkeypatch.setattr(files, "take_lease", lambda *_: False)
    change = files.remove if removes else partial(files.put, data=NEW)
    try:
        with pytest.raises(Conflict, match=r"^somebody was here$"):
            change(place, aside=place.parent.parent if aside else None, check=look)
    finally:
        os.close(descriptor)
    assert (place.read_bytes(), place.stat().st_ino) == (AT_THE_LAST_MOMENT, theirs)
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    assert [p.name for p in place.parent.parent.iterdir()] == [place.parent.name]


def test_a_file_that_somebody_created_at_the_last_moment_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.rename
    place.unlink()

    def late(source: Path, destination: Path, flags: int) -> bool:
        place.write_bytes(AT_THE_LAST_MOMENT)
        return real(source, destination, flags)

    def look(path: Path) -> None:
        if path.exists():
            raise Conflict("somebody was here")

    monkeypatch.setattr(files, "rename", late)
    with pytest.raises(Conflict, match=r"^somebody was here$"):
        files.put(place, NEW, check=look)
    assert place.read_bytes() == AT_THE_LAST_MOMENT
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("removes", [True, False], ids=["remove", "replace"])
def test_a_program_that_has_the_file_open_for_writing_is_named(
    place: Path, *, removes: bool
) -> None:
    """A shell's `>` empties a file first: what is read then is not its content."""
    change = files.remove if removes else partial(files.put, data=NEW)
    with place.open("r+b"):
        with pytest.raises(Conflict) as caught:
            files.refuse_writers(place)
        assert str(caught.value).startswith(f"{place} is open for writing by PID {os.getpid()} (")
        with pytest.raises(Conflict):
            change(place, check=lambda _: None)
    assert place.read_bytes() == OLD
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    files.refuse_writers(place)


def test_a_writer_that_comes_while_the_file_is_exchanged_writes_to_the_file_that_stays(
    place: Path,
) -> None:
    """It waits for the lease, which is given up when the old file is back in its place."""
    writer = None

    def look(path: Path) -> None:
        nonlocal writer
        if writer is None:
            script = f'printf waits; exec cat > "{place}"'
            writer = subprocess.Popen(
                ("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert writer.stdout is not None
            assert writer.stdout.read(5) == "waits"
            locks = Path("/proc/locks")
            fake_node.wait_for(lambda: b"BREAKING" in locks.read_bytes(), "it does not wait")

    with pytest.raises(Conflict, match="open for writing"):
        files.put(place, NEW, check=look)
    assert writer is not None
    writer.communicate("theirs", timeout=20)
    assert place.read_bytes() == b"theirs"
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_an_interruption_leaves_nothing_either(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.put(place, NEW, aside=place.parent.parent)
    assert place.read_bytes() == OLD
    assert [p.name for p in place.parent.parent.iterdir()] == [place.parent.name]


@pytest.mark.parametrize("aside", [True, False], ids=["aside", "beside the target"])
def test_what_a_killed_run_left_is_no_obstacle(place: Path, *, aside: bool) -> None:
    directory = place.parent.parent if aside else place.parent
    spare = files._spare(directory, place)
    spare.write_bytes(b"half")
    files.put(place, NEW, aside=place.parent.parent if aside else None)
    assert place.read_bytes() == NEW
    assert not spare.exists()


def test_sweep_removes_what_a_killed_run_left_and_nothing_else(place: Path) -> None:
    for directory in (place.parent, place.parent.parent):
        files._spare(directory, place).write_bytes(b"half")
    files.sweep(place, place.parent.parent)
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    assert [p.name for p in place.parent.parent.iterdir()] == [place.parent.name]
    assert place.read_bytes() == OLD


@fake_node.needs_root
def test_put_says_that_the_file_system_is_read_only(place: Path) -> None:
    said = _put_elsewhere(fake_node.read_only(place.parent), place)
    assert (
        said == f"4 {place} cannot be written: Read-only file system\n"
        "the file system is read-only: mount it writable, or choose another path\n"
    )
    assert place.read_bytes() == OLD


@fake_node.needs_root
def test_a_full_file_system_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1"\n'
        'printf old > "$1/file"\n'
        'head -c 60k /dev/zero > "$1/filler"\n'
        "shift"
    )
    check = (
        _PUT.replace('b"new"', 'b"n" * 50000')
        + "print(path.read_bytes(), *sorted(map(str, path.parent.iterdir())))"
    )
    place = tmp_path / "file"
    done = subprocess.run(
        [*fake_node.in_mounts(script, str(tmp_path)), sys.executable, "-c", check, str(place)],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert (
        done.stdout == f"4 {place} cannot be written: No space left on device\n"
        "free space on that file system\n"
        f"b'old' {place} {tmp_path}/filler\n"
    )


def _put_elsewhere(prefix: tuple[str, ...], *words: Path) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _PUT, *map(str, words)],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return done.stdout


# --- in a file system that is only pretended ----------------------------------------------------


@pytest.fixture
def pretended(fs: FakeFilesystem, monkeypatch: pytest.MonkeyPatch) -> FakeFilesystem:
    """Pretend a file system; it has no nameless files."""
    monkeypatch.setattr(files, "O_TMPFILE", 0)
    fs.create_file("/etc/containerd/config.toml", contents=OLD, st_mode=stat.S_IFREG | 0o640)
    return fs


@pytest.mark.parametrize("aside", [None, Path("/etc")], ids=["beside the target", "aside"])
def test_a_pretended_full_disk_leaves_the_file_as_it_was(
    pretended: FakeFilesystem, aside: Path | None
) -> None:
    path = Path("/etc/containerd/config.toml")
    pretended.set_disk_usage(len(OLD) + 100)
    with pytest.raises(
        StepError, match=r"config\.toml cannot be written: No space left on device"
    ) as caught:
        files.put(path, NEW, aside=aside)
    assert caught.value.hint == "free space on that file system"
    assert path.read_bytes() == OLD
    assert os.listdir("/etc/containerd") == ["config.toml"]
    assert os.listdir("/etc") == ["containerd"]


def test_a_pretended_disk_with_room_takes_the_file(pretended: FakeFilesystem) -> None:
    path = Path("/etc/containerd/config.toml")
    pretended.set_disk_usage(1_000_000)
    files.put(path, NEW, mode=0o640)
    assert path.read_bytes() == NEW
    assert os.listdir("/etc/containerd") == ["config.toml"]


# --- read ---------------------------------------------------------------------------------------


def test_read_returns_bytes_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\x00\r\n")
    path.chmod(0o640)
    assert files.read(path) == files.FileSnapshot(
        data=b"\xff\x00\r\n",
        mode=0o640,
        uid=os.geteuid(),
        gid=path.stat().st_gid,
        label=files.label(path),
    )


@pytest.mark.parametrize("name", ["absent", "absent/config.toml", "file/config.toml", "dangling"])
def test_read_tells_what_is_absent(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert files.read(tmp_path / name) is None


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(files.LARGEST + 1)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_directory, "is a directory"),
        (_fifo, "is not a regular file"),
        (_socket, "cannot be read: No such device or address"),
        (_circle, "cannot be read: Too many levels of symbolic links"),
        (_huge, f"has {files.LARGEST + 1} bytes, too many for a configuration"),
    ],
    ids=["directory", "fifo", "socket", "circle", "too large"],
)
def test_read_refuses_at_once(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    path = tmp_path / "config.toml"
    make(path)
    with pytest.raises(NodeConfigError) as caught:
        files.read(path)
    assert str(caught.value) == f"{path} {why}"


def test_read_refuses_a_file_that_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(OLD)
    real, calls = os.fstat, []

    def fstat(fd: int) -> os.stat_result:
        calls.append(fd)
        if len(calls) > 1:
            with path.open("ab") as stream:
                stream.write(b"more")
        return real(fd)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(NodeConfigError) as caught:
        files.read(path)
    assert str(caught.value) == f"{path} changed while it was read"
    assert caught.value.hint == "run again when nothing writes to it"


def test_read_refuses_what_the_mode_forbids(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(OLD)
    path.chmod(0)
    code = (
        "import sys; from pathlib import Path; from toolkit import errors; from toolkit.node import"
        " files\ntry: files.read(Path(sys.argv[1]))\nexcept errors.ToolkitError as error:"
        " print(error.exit_code, error)\nelse: print('it was read')\n"
    )
    done = subprocess.run(
        [*fake_node.ORDINARY, sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == f"3 {path} cannot be read: Permission denied\n"


def test_an_error_of_the_disk_is_no_bug_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", failing(errno.EIO, os.fstat))
        with pytest.raises(NodeConfigError) as caught:
            files.read(path)
    assert str(caught.value) == f"{path} cannot be read: Input/output error"


# --- the rest -----------------------------------------------------------------------------------


def test_remove_takes_what_is_there_and_is_content_with_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    files.remove(path)
    assert not path.exists()
    files.remove(path)


def test_remove_says_what_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        files.remove(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be removed: Is a directory"
    assert caught.value.hint == "the path is a directory: move it away, or choose another path"


@pytest.mark.parametrize(
    ("path", "missing"),
    [("there", []), ("there/a", ["there/a"]), ("a/b/c", ["a", "a/b", "a/b/c"])],
    ids=["none", "one", "three, outermost first"],
)
def test_missing_directories(tmp_path: Path, path: str, missing: list[str]) -> None:
    (tmp_path / "there").mkdir()
    assert files.missing_directories(tmp_path / path) == [tmp_path / name for name in missing]


def test_make_directory_makes_all_of_them_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.make_directory(tmp_path / "a/b", 0o750)
        files.make_directory(tmp_path / "a/b", 0o700)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [
        0o755,
        0o750,
    ]


def test_make_directory_says_which_one_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StepError) as caught:
        files.make_directory(tmp_path / "file/below")
    assert (
        str(caught.value) == f"the directory {tmp_path}/file/below cannot be made: Not a directory"
    )


def test_writable_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.writable(tmp_path) is None
    assert files.writable(tmp_path / "absent/below") is None
    assert files.writable(tmp_path / "file") == f"{tmp_path}/file is no directory"
    assert files.writable(tmp_path / "file/below") == f"{tmp_path}/file is no directory"


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        pytest.param(
            fake_node.read_only, "is on a read-only file system", marks=fake_node.needs_root
        ),
        (lambda _: fake_node.ORDINARY, "is not writable"),
    ],
    ids=["read-only", "forbidden"],
)
def test_writable_tells_read_only_from_forbidden(
    tmp_path: Path, prefix: Callable[[Path], tuple[str, ...]], why: str
) -> None:
    directory = tmp_path / "etc"
    directory.mkdir()
    directory.chmod(0o555)
    code = (
        "import sys; from pathlib import Path; from toolkit.node import files\n"
        "print(files.writable(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [*prefix(directory), sys.executable, "-c", code, str(directory)],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == f"{directory} {why}\n"
