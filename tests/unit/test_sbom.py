"""The image's bill of materials."""

from __future__ import annotations

from pathlib import Path

import psycopg

from images.sbom import bill, debian_packages, python_packages

DPKG = """ii |pgbouncer|1.18.0-1+deb12u1|amd64
rc |removed-but-configured|1.0|amd64
ii |libc6|2.36-9+deb12u14|amd64
ii |base-passwd|1:3.6|all
"""


def test_it_names_what_is_installed_and_nothing_else() -> None:
    found = bill(debian_packages(DPKG), [("psycopg", "3.3.9")], "flypg-postgres-15", "debian-12")
    components = found["components"]
    assert isinstance(components, list)
    assert [part["purl"] for part in components] == [
        "pkg:deb/debian/base-passwd@1%3A3.6?arch=all&distro=debian-12",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12",
        "pkg:deb/debian/pgbouncer@1.18.0-1%2Bdeb12u1?arch=amd64&distro=debian-12",
        "pkg:pypi/psycopg@3.3.9",
    ]
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")


def test_python_packages_are_those_of_the_environment() -> None:
    names = dict(python_packages([str(Path(psycopg.__file__).parents[1])]))
    assert "psycopg" in names and "typing-extensions" in names
