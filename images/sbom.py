"""The image's bill of materials: every Debian package and every Python package in it, as CycloneDX 1.5 JSON.

Run while the image is built; `make sbom` prints what it wrote. The same packages give the same bytes.

    dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}|${Architecture}\n' | python3 sbom.py 15 /opt/flypg/lib/…
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import quote


def debian_packages(text: str) -> list[tuple[str, str, str]]:
    """Name, version and architecture of what dpkg-query says is installed. Pure."""
    found = []
    for line in text.splitlines():
        status, name, version, architecture = line.split("|")
        if status[:2] == "ii":
            found.append((name, version, architecture))
    return sorted(found)


def python_packages(directories: Iterable[str]) -> list[tuple[str, str]]:
    found = metadata.distributions(path=list(directories))
    return sorted((each.metadata["Name"].lower().replace("_", "-"), each.version) for each in found)


def bill(
    debian: Iterable[tuple[str, str, str]], python: Iterable[tuple[str, str]], name: str, distribution: str
) -> dict[str, object]:
    """The document. Pure. `distribution`: ID and version of /etc/os-release, like debian-12."""
    system = distribution.partition("-")[0]
    components = [
        {
            "type": "library",
            "name": package,
            "version": version,
            "purl": f"pkg:deb/{system}/{package}@{quote(version, safe='')}?arch={architecture}&distro={distribution}",
        }
        for package, version, architecture in debian
    ] + [
        {
            "type": "library",
            "name": package,
            "version": version,
            "purl": f"pkg:pypi/{package}@{quote(version, safe='')}",
        }
        for package, version in python
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name}},
        "components": components,
    }


def main() -> None:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    distribution = "-".join(release.get(key, "").strip('"') for key in ("ID", "VERSION_ID")).strip("-")
    document = bill(
        debian_packages(sys.stdin.read()), python_packages(sys.argv[2:]), f"flypg-postgres-{sys.argv[1]}", distribution
    )
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
