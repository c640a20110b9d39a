"""Archives that are the same bytes each time: sorted names, one time, one owner, two modes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path


def pack(directory: Path, target: Path, epoch: int, *, top: str = "") -> None:
    """Write what is below a directory to a tar archive, compressed if the name ends with gz.

    `epoch` is the time of every entry, in seconds since 1970. `top` is put before every name.
    Raises ValueError for what is neither a file nor a directory.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _sorted(directory):
            name = f"{top}{path.relative_to(directory).as_posix()}"
            entry = tarfile.TarInfo(name)
            entry.mtime = epoch
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path} is neither a file nor a directory")
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
                continue
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)
    data = stream.getvalue()
    target.write_bytes(compressed(data, epoch) if target.suffix in {".gz", ".tgz"} else data)


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a tar archive. Raises tarfile.TarError if an entry leads out of the directory."""
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")


def compressed(data: bytes, epoch: int) -> bytes:
    """Return data in the format of gzip, with a time and without a name.

    Python 3.11 and 3.12 write another system into the header of gzip.compress for the time 0.
    """
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=epoch) as packed:
        packed.write(data)
    return stream.getvalue()


def _sorted(directory: Path) -> Iterator[Path]:
    yield from sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).parts)
