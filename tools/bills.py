"""The bill of materials of the program without the image, as CycloneDX: the locked wheels."""

from __future__ import annotations

import email
import re
import uuid
from datetime import UTC, datetime
from importlib import metadata

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools import licenses

_LOCKED = re.compile(
    r"^([\w.-]+)==([^\s\\]+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)", re.MULTILINE
)


def locked(requirements: str) -> list[tuple[str, str, list[str]]]:
    """Return name, version and SHA-256 sums of every requirement that is locked in a text."""
    return [
        (name, version, re.findall(r"sha256:(\w+)", sums))
        for name, version, sums in _LOCKED.findall(requirements)
    ]


def bill(requirements: str, version: str, epoch: int) -> str:
    """Return the bill of materials of a version.

    `requirements` is the text of requirements.txt; `epoch` is the time that it gives itself, in
    seconds since 1970. The licenses are those that the same packages of this Python say, which
    are of the same versions (constraints.txt). The same arguments make the same text.
    """
    own = PackageURL("pypi", None, "nvidia-toolkit", version)
    bom = Bom()
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    bom.metadata.component = _component(own, ComponentType.APPLICATION, expression=licenses.OWN)
    parts = [
        _component(
            PackageURL("pypi", None, name, number),
            ComponentType.LIBRARY,
            sums,
            _license(name),
        )
        for name, number, sums in locked(requirements)
    ]
    bom.components.update(parts)
    bom.register_dependency(bom.metadata.component, parts)
    names = sorted(str(each.purl) for each in parts)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, " ".join((own.to_string(), *names)))
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text + "\n"


def _license(name: str) -> str:
    text = metadata.distribution(name).read_text("METADATA") or ""
    return licenses.of(email.message_from_string(text))


def _component(
    url: PackageURL, kind: ComponentType, sums: list[str] | None = None, expression: str = ""
) -> Component:
    return Component(
        type=kind,
        name=url.name,
        version=url.version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseExpression(expression)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in sums or ()],
    )
