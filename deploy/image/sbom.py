"""The image's bill of materials as an SPDX 2.3 document: https://spdx.github.io/spdx-spec/v2.3/

Python's packages as their own metadata tells, Debian's as dpkg does, and the interpreter.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote


class Part(NamedTuple):
    """Something in the image: `purl` is its package URL, `licence` an SPDX expression or NOASSERTION."""

    name: str
    version: str
    purl: str
    licence: str = "NOASSERTION"


def document(packages: Path, more: Iterable[Part]) -> str:
    """JSON of all that is installed in the folder `packages`, of `more`, and of this interpreter."""
    parts = [*installed(packages), *more, interpreter()]
    [agent] = [part for part in parts if part.name == "tidegauge"]
    listed = [_package(part) for part in sorted(parts)]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    created = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", _reference(agent))]
    relations += [
        (_reference(agent), "DEPENDS_ON", _reference(part)) for part in sorted(parts) if part != agent
    ]
    return json.dumps(
        {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": f"tidegauge-{agent.version}",
            "documentNamespace": f"https://spdx.org/spdxdocs/tidegauge-{agent.version}-{digest}",
            "creationInfo": {
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", created),
                "creators": ["Tool: tidegauge-sbom"],
            },
            "packages": listed,
            "relationships": [
                {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
                for one, kind, other in relations
            ],
        },
        indent=1,
    )


def installed(packages: Path) -> Iterator[Part]:
    """Python's distributions in a folder."""
    for found in metadata.distributions(path=[str(packages)]):
        about = found.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
        # Older metadata has a sentence, or the whole text, where an expression belongs.
        licences = about.get_all("License-Expression") or ["NOASSERTION"]
        yield Part(name, found.version, f"pkg:pypi/{name}@{found.version}", licences[0])


def debian(name: str, version: str, architecture: str) -> Part:
    # Versions have + and : in them, which a package URL quotes.
    return Part(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")


def interpreter() -> Part:
    version = platform.python_version()
    return Part("cpython", version, f"pkg:generic/cpython@{version}", "Python-2.0.1")


def _package(part: Part) -> dict[str, object]:
    return {
        "SPDXID": _reference(part),
        "name": part.name,
        "versionInfo": part.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": part.licence,
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": part.purl,
            }
        ],
    }


def _reference(part: Part) -> str:
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", part.purl.removeprefix("pkg:"))
