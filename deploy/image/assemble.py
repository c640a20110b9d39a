"""Assemble the image's root: Python, what this program needs of it, a shell, the C library only.

Runs in the builder stage, with the builder's own Python, which is the one that goes into the image.
Everything that is not needed at run time (pip, compilers, tests, a package manager) is never
copied, so no later layer has to delete it. Of Python's modules those are copied that the program
can import (reach.py), as bytecode (bytecode.py).
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

_SOURCE: Final = Path(__file__).resolve().parent.parent.parent
_WHEELS: Final = _SOURCE / "wheels"
# The GPU Operator starts `/bin/sh -c /bin/entrypoint.sh`: bash becomes what it starts, while dash
# stays its parent, gets the pod's SIGTERM in its place and takes it along by SIGKILL.
_PROGRAMS: Final = {"sh": "bash", "cat": "cat", "sleep": "sleep"}
_OURS: Final = ("runtimes", "toolkit")
_COMMANDS: Final = ("nvidia-toolkit", "nvidia-ctk-installer")
_SCRIPT: Final = "nvidia-toolkit.py"
_LAUNCHER: Final = "#!{python} -IB\nfrom toolkit.program import main\n\nmain()\n"
# What programs of a toolkit may be linked with, besides what Python needs.
_LIBC: Final = (
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libresolv.so.2",
)
_DIRECTORIES: Final = (
    "dev",
    "etc",
    "host",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/local/bin",
    "var",
)
_MERGED: Final = ("bin", "lib", "lib64", "sbin")


def main() -> None:
    """Assemble the root below the directory that is given."""
    image = Path(sys.argv[1])
    lay(image)
    python = Path(os.path.realpath(sys.executable))
    programs = [Path(os.path.realpath(shutil.which(name) or "")) for name in _PROGRAMS.values()]
    for name, program in zip(_PROGRAMS, programs, strict=True):
        copy(program, image)
        link(image / "usr/bin" / name, program)
    copy(python, image)
    link(python_in(image), python)
    with tempfile.TemporaryDirectory() as place:
        packages = Path(place)
        install(packages, _SOURCE / "requirements.txt")
        for name in _OURS:
            shutil.copytree(_SOURCE / name, packages / name)
        modules = reached(packages)
        put_modules(image, modules, packages)
        licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
        if licence.exists():  # a Python that is no package of Debian's
            copy(licence, image)
        put_metadata(below(image, Path(sysconfig.get_path("purelib"))), packages)
        extensions = [path for path in modules if path.suffix == ".so"]
        libraries = list(closure([python, *programs, *extensions]))
    for library in libraries:
        copy(library, image)
    subprocess.run(("ldconfig", "-r", str(image)), check=True)
    purelib = below(image, Path(sysconfig.get_path("purelib")))
    commands(image / "usr/local/bin", python, purelib / "toolkit/artifacts")
    owners = debian_packages([python, *programs, *libraries, *modules])
    describe(image, owners, purelib)
    settle(image)
    report(image, libraries)


def commands(directory: Path, python: Path, artifacts: Path) -> None:
    """Write the commands; where there are static programs, those start the script of Python.

    The wrapper goes where the program looks for it.
    """
    sys.path[:0] = [str(_SOURCE), str(_SOURCE / "deploy/programs")]
    build: Any = importlib.import_module("build")
    made = build.build(
        artifacts, [os.uname().machine], wheels=_WHEELS if _WHEELS.is_dir() else None,
        programs=("wrapper", "launcher"),
    )  # fmt: skip
    script = directory / (_SCRIPT if made else _COMMANDS[0])
    script.write_text(_LAUNCHER.format(python=python), encoding="utf-8")
    content = script.read_bytes()
    for path in made[1:]:
        content = build.launcher(path.read_bytes(), python, Path("/usr/local/bin") / _SCRIPT)
        path.unlink()
    for name in _COMMANDS:
        (directory / name).write_bytes(content)
    for path in directory.iterdir():
        path.chmod(0o755)


def reached(packages: Path) -> list[Path]:
    """Return the files of all modules that the program can import, sorted."""
    sys.path.insert(0, str(_SOURCE / "deploy/image"))
    reach: Any = importlib.import_module("reach")
    stdlib, dynload = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    library = reach.Library([stdlib, dynload / "lib-dynload", packages])
    own = [
        ".".join(path.relative_to(packages).with_suffix("").parts).removesuffix(".__init__")
        for name in _OURS
        for path in (packages / name).rglob("*.py")
    ]
    found = reach.reached(library, own)
    # The frozen ones are in the interpreter. It finds its library by the file of `os`.
    files = {library.file(name) for name in found if name == "os" or not is_frozen(name)}
    return sorted(path for path in files if path is not None)


def is_frozen(name: str) -> bool:
    """Return whether a module is a part of the interpreter, as bytecode."""
    # The interpreter has two of them by other names; importlib takes those.
    name = name.replace("importlib._bootstrap", "_frozen_importlib")
    return importlib.machinery.FrozenImporter.find_spec(name) is not None


def put_modules(image: Path, modules: Iterable[Path], packages: Path) -> None:
    """Compile modules, and copy extension modules, into the image."""
    purelib = Path(sysconfig.get_path("purelib"))
    lines = []
    for module in modules:
        inside = module
        if module.is_relative_to(packages):
            inside = purelib / module.relative_to(packages)
        target = below(image, inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        if module.suffix == ".py" and module.name != "__main__.py":
            name = f"/{target.relative_to(image)}"
            lines.append(json.dumps([str(module), str(target.with_suffix(".pyc")), name]))
        else:
            # The agent runs `__main__.py` by its path.
            shutil.copy(module, target)
    subprocess.run(
        (sys.executable, "-IBX", "no_debug_ranges", _SOURCE / "deploy/image/bytecode.py"),
        input="\n".join(lines), text=True, check=True,
    )  # fmt: skip


def put_metadata(target: Path, packages: Path) -> None:
    """Copy what says what the wheels are, and under which licences."""
    for info in sorted(packages.glob("*.dist-info")):
        # The headers alone: what follows is the text of the project's page.
        head, _, _ = (info / "METADATA").read_text(encoding="utf-8").partition("\n\n")
        (target / info.name).mkdir(parents=True)
        (target / info.name / "METADATA").write_text(f"{head}\n", encoding="utf-8")
        for path in sorted(info.rglob("*")):
            if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|authors)", path.name):
                place = target / info.name / path.relative_to(info)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


def lay(image: Path) -> None:
    """Make the directories, with /usr merged as Debian has it, and who root is."""
    for name in _DIRECTORIES:
        (image / name).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        (image / "usr" / name).mkdir()
        (image / name).symlink_to(f"usr/{name}")
    (image / "var/run").symlink_to("/run")
    (image / "tmp").chmod(0o1777)
    (image / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="utf-8")
    (image / "etc/group").write_text("root:x:0:\n", encoding="utf-8")
    for path in (Path("/etc/ld.so.conf"), *Path("/etc/ld.so.conf.d").glob("*.conf")):
        if path.exists():
            copy(path, image)


def below(image: Path, path: Path) -> Path:
    """Return where a path of the builder lies in the image: its real directory, its own name."""
    return image / os.path.realpath(path.parent).lstrip("/") / path.name


def copy(path: Path, image: Path) -> None:
    """Copy a file to the same place; what a link leads to gets the link's name."""
    target = below(image, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(path, target)


def link(path: Path, target: Path) -> None:
    """Give a program of the image one more name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(target)


def python_in(image: Path) -> Path:
    """Return where `python3` is looked for."""
    return below(image, Path(sys.executable).with_name("python3"))


def install(target: Path, requirements: Path) -> None:
    """Install locked wheels; from a directory of wheels, where one lies beside the source."""
    here = ["--no-index", f"--find-links={_WHEELS}"] if _WHEELS.is_dir() else []
    subprocess.run(
        (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
         "--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--root-user-action=ignore",
         "--disable-pip-version-check",
         *here, f"--target={target}", f"--requirement={requirements}"),
        check=True,
    )  # fmt: skip


def closure(files: Iterable[Path]) -> Iterator[Path]:
    """Yield the shared libraries that files need, the loader among them."""
    told = subprocess.run(
        ("ldd", *map(str, files)), capture_output=True, text=True, check=False
    ).stdout
    found = {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(", told, re.MULTILINE)}
    libc = next(path for path in found if path.name == "libc.so.6")
    found |= {path for path in map(libc.with_name, _LIBC) if path.exists()}
    yield from sorted(found)


def debian_packages(files: Iterable[Path]) -> list[str]:
    """Return the Debian packages that files are of; none where the base is no Debian."""
    if shutil.which("dpkg-query") is None:
        return []
    # dpkg knows a file by the name that its package has for it, before or after /usr was merged.
    real = {os.path.realpath(path) for path in files}
    names = sorted(
        real | {name.removeprefix("/usr") for name in real} | {str(path) for path in files}
    )
    told = subprocess.run(
        ("dpkg-query", "--search", *names), capture_output=True, text=True, check=False
    ).stdout
    lines = [
        line.partition(": ")[0] for line in told.splitlines() if not line.startswith("diversion")
    ]
    return sorted({name.strip() for line in lines for name in line.split(",")})


def describe(image: Path, owners: Iterable[str], packages: Path) -> None:
    """Write what is in the image: as Debian's package list for scanners, and as CycloneDX."""
    debian = []
    for name in owners:
        status = subprocess.run(
            ("dpkg-query", "--status", name), capture_output=True, text=True, check=True
        ).stdout
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", status, re.MULTILINE))
        place = image / "var/lib/dpkg/status.d" / fields["Package"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(status, encoding="utf-8")
        rights = Path("/usr/share/doc") / fields["Package"] / "copyright"
        if rights.exists():
            copy(rights, image)
        debian.append(fields)
    link_copies(image / "usr/share/doc")
    if Path("/etc/os-release").exists():
        (image / "etc/os-release").write_bytes(Path("/etc/os-release").read_bytes())
    wheels = sorted(
        tuple(path.name.removesuffix(".dist-info").split("-"))
        for path in packages.glob("*.dist-info")
    )
    with tempfile.TemporaryDirectory() as place:
        install(Path(place), _SOURCE / "deploy/image/requirements.txt")
        sys.path.insert(0, place)
        text = bill(debian, wheels)
    target = image / "usr/share/nvidia-toolkit/sbom.cdx.json"
    target.parent.mkdir(parents=True)
    target.write_text(text, encoding="utf-8")


def link_copies(directory: Path) -> None:
    """Replace files with what another one has: packages of one source have the same rights."""
    first: dict[bytes, Path] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        other = first.setdefault(path.read_bytes(), path)
        if other != path:
            path.unlink()
            path.symlink_to(os.path.relpath(other, path.parent))


def bill(debian: list[dict[str, str]], wheels: Iterable[tuple[str, ...]]) -> str:
    """Return the bill of materials as CycloneDX."""
    model: Any = importlib.import_module("cyclonedx.model.component")
    boms: Any = importlib.import_module("cyclonedx.model.bom")
    output: Any = importlib.import_module("cyclonedx.output.json")
    urls: Any = importlib.import_module("packageurl")
    bom = boms.Bom()
    ours = re.search(
        r'"(.+)"', (_SOURCE / "toolkit/__init__.py").read_text(encoding="utf-8").split("=")[-1]
    )
    kinds = model.ComponentType
    bom.metadata.component = model.Component(
        type=kinds.CONTAINER, name="nvidia-toolkit", version=ours and ours[1], bom_ref="image"
    )
    parts = [
        urls.PackageURL(
            "deb", "debian", each["Package"], each["Version"], {"arch": each["Architecture"]}
        )
        for each in debian
    ]
    parts += [
        urls.PackageURL("pypi", None, name.replace("_", "-"), version) for name, version in wheels
    ]
    parts += [urls.PackageURL("generic", None, "python", sys.version.split(maxsplit=1)[0])]
    made = [
        model.Component(
            type=kinds.LIBRARY,
            name=url.name,
            version=url.version,
            purl=url,
            bom_ref=url.to_string(),
        )
        for url in parts
    ]
    bom.components.update(made)
    bom.register_dependency(bom.metadata.component, made)
    # What differs from build to build has no place in an image that is built the same twice.
    bom.metadata.timestamp, bom.serial_number = _epoch(), _serial(parts)
    text: str = output.JsonV1Dot6(bom).output_as_string(indent=1)
    return text


def _epoch() -> Any:
    moments: Any = importlib.import_module("datetime")
    return moments.datetime.fromtimestamp(
        int(os.environ.get("SOURCE_DATE_EPOCH", "0")), moments.UTC
    )


def _serial(parts: Iterable[Any]) -> Any:
    uuids: Any = importlib.import_module("uuid")
    return uuids.uuid5(uuids.NAMESPACE_URL, " ".join(part.to_string() for part in parts))


def settle(image: Path) -> None:
    """Give everything one time, so that the same source makes the same image."""
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    (image / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)
    for path in (image, *image.rglob("*")):
        os.utime(path, (moment, moment), follow_symlinks=False)


def report(image: Path, libraries: Iterable[Path]) -> None:
    """Say how large the image is, and how much of that is the C library, which any image has."""
    libc = {*_LIBC, "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    base = sum(os.stat(path).st_size for path in libraries if path.name in libc)
    whole = sum(
        path.lstat().st_size
        for path in image.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    sys.stdout.write(
        f"image: {(whole - base) / 1e6:.1f} MB above the C library ({base / 1e6:.1f} MB)\n"
    )


if __name__ == "__main__":
    main()
