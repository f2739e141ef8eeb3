"""Who may import whom: the floors, the doors to the outside, and what a pure module keeps away from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "cluster": set(),
    "postgres": {"cluster"},
    "sentinel": {"cluster"},
    "healthchecks": {"postgres", "cluster"},
    "backups": {"postgres", "cluster"},
    "agent": {"healthchecks", "backups", "postgres", "cluster", "sentinel"},
    "flypg": {"agent", "sentinel", "healthchecks", "backups", "postgres", "cluster", "chaos"},
    "chaos": {"cluster"},
    "images": set(),
}
RUN_BOTH = ("agent/daemon.py", "agent/node.py", "agent/loops.py")  # one process runs both loops; they meet in etcd

DOORS = {
    "etcd3": ("cluster/etcd_grpc.py",),
    "grpc": ("cluster/etcd_grpc.py",),
    "psycopg": ("postgres/", "chaos/"),  # chaos is a client like any other
    "boto3": ("backups/objects.py",),
    "botocore": ("backups/objects.py",),
    "subprocess": (
        "postgres/command.py",
        "agent/routing/",
        "agent/fence.py",
        "agent/drill",  # the helper, and what it asks of the firewall
        "chaos/",
        "flypg/local",
        "flypg/editor.py",
    ),
}
BEHIND = {  # modules of ours that lie behind a door, and who may use them
    "cluster.etcd_grpc": ("cluster/etcd.py", "cluster/etcd_messages.py"),
    "cluster.etcd_messages": ("cluster/etcd.py",),
}
PROCESS_STARTERS = {"create_subprocess_exec", "create_subprocess_shell"}  # asyncio's own way round `subprocess`
IMPURE = {"asyncio", "time", "os", "random", "logging", "subprocess", "socket"}


def modules() -> Iterator[tuple[str, Path]]:
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The full dotted name of everything a module imports, wherever in it, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide who imports whom"
            yield node.module or "", node.lineno


MODULES = list(modules())


def of(package: str) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in MODULES if name.startswith(f"{package}/")]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_keeps_to_its_floor(package: str) -> None:
    broken = []
    for name, path in of(package):
        for module, line in imports(parsed(path)):
            top = module.split(".")[0]
            if top in MAY_IMPORT and top != package:
                if top not in MAY_IMPORT[package]:
                    broken.append(f"{name}:{line}: {package} may not import {module}")
                if (package, top) == ("agent", "sentinel") and name not in RUN_BOTH:
                    broken.append(f"{name}:{line}: only {', '.join(RUN_BOTH)} may import {module}")
            if top == "tests":
                broken.append(f"{name}:{line}: tests are not part of what is installed")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_outside_is_reached_through_its_door(package: str) -> None:
    broken = []
    for name, path in of(package):
        tree = parsed(path)
        for module, line in imports(tree):
            top = module.split(".")[0]
            if top in DOORS and not name.startswith(DOORS[top]):
                broken.append(f"{name}:{line}: {module} belongs into {' or '.join(DOORS[top])}")
            if name not in BEHIND.get(module, (name,)):
                broken.append(f"{name}:{line}: {module} is for {' and '.join(BEHIND[module])}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr not in PROCESS_STARTERS:
                continue
            if not name.startswith(DOORS["subprocess"]):
                broken.append(f"{name}:{node.lineno}: programs are started in {' or '.join(DOORS['subprocess'])}")
    assert not broken, "\n".join(broken)


def is_pure(path: Path) -> bool:
    """Does the module say of itself, at the end of a paragraph of its docstring, that it is pure?"""
    try:
        doc = ast.get_docstring(parsed(path)) or ""
    except SyntaxError:  # the tests above name it
        return False
    return any(paragraph.rstrip().endswith("Pure.") for paragraph in doc.split("\n\n"))


PURE = [(name, path) for name, path in MODULES if is_pure(path)]


def test_a_pure_module_touches_nothing() -> None:
    broken = [
        f"{name}:{line}: a pure module imports no {module}"
        for name, path in PURE
        for module, line in imports(parsed(path))
        if module.split(".")[0] in IMPURE | set(DOORS)
    ]
    assert not broken, "\n".join(broken)


def test_the_decisions_are_pure() -> None:
    pure = {name for name, _ in PURE}
    assert {
        "cluster/model.py",
        "cluster/quorum.py",
        "cluster/authority.py",
        "agent/plan.py",
        "sentinel/decide.py",
    } <= pure
