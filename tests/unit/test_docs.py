"""The documents say what the code does: every setting is listed, every command and link exists."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cluster.model import Ports, Spec
from cluster.settings import FOREIGN, KNOWN, PORT_KEYS, SECRETS
from cluster.values import FILE_SUFFIX
from flypg.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
IDS = [str(d.relative_to(ROOT)) for d in DOCUMENTS]


def test_every_setting_is_documented() -> None:
    secret_files = {secret + FILE_SUFFIX for secret in SECRETS}
    missing = sorted(key for key in KNOWN - secret_files if f"`{key}`" not in SETTINGS)
    assert not missing, f"docs/settings.md lacks {', '.join(missing)}"


def test_every_setting_that_the_code_reads_is_documented() -> None:
    packages = ("agent", "backups", "cluster", "flypg", "healthchecks", "postgres", "sentinel")
    named = {
        key
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for key in re.findall(r"\bFLYPG_[A-Z0-9_]*[A-Z0-9]\b", path.read_text())
    }
    said = "\n".join(document.read_text() for document in DOCUMENTS)
    missing = sorted(key for key in named if f"`{key}`" not in said and not key.endswith("_FILE"))
    assert not missing, f"no document lists {', '.join(missing)}"


def test_every_key_of_the_spec_is_documented() -> None:
    missing = [field.name for field in fields(Spec) if f"| `{field.name}` |" not in SETTINGS]
    assert not missing, f"docs/settings.md lacks {', '.join(missing)}"


def test_the_documented_ports_are_the_defaults() -> None:
    for name, key in PORT_KEYS.items():
        assert f"| `{key}` | {getattr(Ports(), name)} |" in SETTINGS


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_no_document_names_a_setting_that_does_not_exist(document: Path) -> None:
    named = set(re.findall(r"FLYPG_[A-Z0-9_]*[A-Z0-9]\b(?!_)", document.read_text()))
    unknown = sorted(key for key in named if key not in KNOWN and not key.startswith(FOREIGN))
    assert not unknown, f"{document.name} names {', '.join(unknown)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_no_link_is_broken(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    broken = [link for link in links if not (document.parent / link).exists()]
    assert not broken, f"{document.name} links to {', '.join(broken)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_command_in_a_document_exists(document: Path) -> None:
    parser = build_parser()
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", document.read_text(), re.M | re.S):
        for line in block.splitlines():
            words = line.split("#")[0].split()
            while words and ("=" in words[0] or words[0] in ("sudo", "env")):
                words = words[1:]
            if words and words[0].rpartition("/")[2] == "flypg" and not set("|;&$<>()\"'") & set(" ".join(words)):
                try:
                    parser.parse_args(words[1:])
                except SystemExit as error:
                    raise AssertionError(f"{document.name}: {line}") from error
