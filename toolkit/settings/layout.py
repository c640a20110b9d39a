"""The files of this program on the node: in the install directory, and beside the PID file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass

VERSIONS: Final = ".toolkit-versions"
"""The name of the directory with the installed versions: the toolkit's link points into it."""


@dataclass(frozen=True, slots=True)
class InstallDir:
    """The directory of --toolkit-install-dir, where it is seen here."""

    path: Path

    @property
    def toolkit(self) -> Path:
        """Return the link to the version of the toolkit that is in use."""
        return self.path / "toolkit"

    @property
    def versions(self) -> Path:
        """Return the directory with the toolkit's installed versions, each under its digest."""
        return self.path / VERSIONS

    @property
    def state(self) -> Path:
        """Return the directory with the record and the originals."""
        return self.path / ".nvidia-toolkit"

    @property
    def record(self) -> Path:
        """Return the file with the record of what was changed."""
        return self.state / "state.json"

    @property
    def originals(self) -> Path:
        """Return the directory with original contents of changed files, each under its digest."""
        return self.state / "originals"


@dataclass(frozen=True, slots=True)
class RunDir:
    """The directory of the PID file: what need not survive a boot."""

    path: Path

    @staticmethod
    def of(pid_file: str) -> RunDir:
        """Return the directory of a PID file."""
        return RunDir(Path(pid_file).parent)

    @property
    def readiness(self) -> Path:
        """Return the readiness record, unless --readiness-file names another."""
        return self.path / "ready.json"

    @property
    def agent(self) -> Path:
        """Return the file that the liveness probe reads."""
        return self.path / "agent.json"

    @property
    def restarts(self) -> Path:
        """Return the file that counts the restarts of the runtime."""
        return self.path / "restarts.json"

    @property
    def report(self) -> Path:
        """Return the file that remembers what was reported to the API server."""
        return self.path / "report.json"

    @property
    def answers(self) -> Path:
        """Return the cache of what the runtime's binary printed."""
        return self.path / "answers.json"

    @property
    def launch(self) -> Path:
        """Return the file that holds how a daemon was started that is being ended."""
        return self.path / "launch.json"

    @property
    def directories(self) -> Path:
        """Return the list of directories that were created before there was a record."""
        return self.path / "directories.json"
