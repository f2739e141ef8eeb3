"""The command line: every command exists, typos get a suggestion, errors end with the right code."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import FlypgError, OutcomeUnknown, SettingsError, StoreConflict, StoreUnavailable
from cluster.model import NodeId, RequestKind
from flypg import main as program
from flypg.asking import new_request, outcome_reply
from flypg.cli import build_parser
from flypg.parsing import Parser
from flypg.reply import BadInput, Exit, Refused, Reply, done


def leaves(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Parser]]:
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, made in action.choices.items():
            yield from leaves(made, (*words, name))


LEAVES = list(leaves(build_parser()))


@pytest.mark.parametrize(("words", "parser"), LEAVES, ids=[" ".join(w) for w, _ in LEAVES])
def test_every_command_can_be_run_and_explains_itself(words: tuple[str, ...], parser: Parser) -> None:
    run = parser.get_default("run")
    module, _, function = run.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert parser.description, f"flypg {' '.join(words)} --help says nothing"
    for action in parser._actions:
        if action.option_strings:
            assert action.help, f"flypg {' '.join(words)} {action.option_strings[0]} is not explained"
    assert parser.prog == f"flypg {' '.join(words)}"


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and standard error of a command that is not even tried."""
    with pytest.raises(SystemExit) as ended:
        program.main(argv)
    code = ended.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


TYPOS = [
    (("statsu",), "did you mean: status?"),
    (("status", "--jsn"), "did you mean: --json?"),
    (("local", "donw"), "did you mean: down?"),
    (("node", "reclone"), "missing: NODE"),
    (("local",), "one of up, down"),
    (("local", "up", "--nodes", "many"), "'many' is not a whole number above zero"),
    (("switchover", "--wait", "soon"), "'soon' is not a number of seconds"),
    (("status", "extra"), "unexpected argument: extra"),
    (("why", "0"), "'0' is not a whole number above zero"),
]


@pytest.mark.parametrize(("argv", "expected"), TYPOS, ids=[" ".join(t[0]) for t in TYPOS])
def test_a_typo_says_what_was_meant(argv: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *argv)
    assert code == Exit.BAD_INPUT
    assert expected in text


CODES: list[tuple[Exception | Reply, int]] = [
    (done("fine"), 0),
    (FlypgError("broken"), 1),
    (BadInput("what"), 2),
    (SettingsError("FLYPG_NODE", "A B", "may hold only a-z, 0-9 and _"), 2),
    (Refused("not now"), 3),
    (StoreUnavailable("no answer"), 4),
    (OutcomeUnknown("no answer"), 1),
    (StoreConflict("changed"), 1),
]


@pytest.mark.parametrize(("happens", "code"), CODES, ids=[type(c[0]).__name__ for c in CODES])
def test_what_goes_wrong_becomes_an_exit_code(
    happens: Exception | Reply, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> Reply:
        if isinstance(happens, Reply):
            return happens
        raise happens

    monkeypatch.setattr("flypg.commands.status.run", run)
    assert program.main(["status"]) == code
    written = capsys.readouterr()
    assert (written.err == "") == (code == 0)
    assert program.main(["status", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit"] == code


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: argparse.Namespace) -> Reply:
        raise ZeroDivisionError

    monkeypatch.setattr("flypg.commands.status.run", run)
    with pytest.raises(ZeroDivisionError):
        program.main(["status"])


OUTCOMES = [
    ("done: n2 is primary", Exit.OK),
    ("refused: n2 does not stream", Exit.REFUSED),
    ("failed: n1 did not stop", Exit.FAILED),
    (None, Exit.TIMED_OUT),
]


@pytest.mark.parametrize(("outcome", "code"), OUTCOMES, ids=[str(o[0]) for o in OUTCOMES])
def test_an_outcome_becomes_a_reply(outcome: str | None, code: Exit) -> None:
    reply = outcome_reply(new_request(RequestKind.SWITCHOVER, NodeId("n2")), outcome, 30.0, {})
    assert reply.exit is code
    assert "switchover" in reply.text


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cluster is named, and no local one exists."""
    for name in ("FLYPG_ETCD_ENDPOINTS", "FLYPG_CLUSTER", "FLY_APP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLYPG_LOCAL_DIR", str(tmp_path / "none"))
    return tmp_path


UNADDRESSED = [
    (("status",), "there is no local cluster in"),
    (("status", "--cluster", "a"), "--cluster needs etcd's address too"),
    (("status", "--etcd", "ftp://x"), "must begin with http"),
    (("status", "--etcd", "127.0.0.1:1", "--dir", "/x"), "give one or the other"),
    (("local", "env"), "start one with: flypg local up"),
    (("local", "up", "--etcd-members", "2"), "1, 3 or 5"),
    (("local", "up", "--port-base", "65300"), "--port-base 65300: must be from"),
    (("local", "up", "--set", "novalue"), "expected NAME=VALUE"),
    (("local", "up", "--set", "SU_PASSWORD=x"), "passwords are kept in"),
    (("local", "up", "--dir", "/tmp/" + "x" * 90), "too long a path"),
]


@pytest.mark.parametrize(("argv", "expected"), UNADDRESSED, ids=[" ".join(u[0])[:40] for u in UNADDRESSED])
def test_bad_input_ends_with_2_and_does_nothing(
    argv: tuple[str, ...], expected: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(argv) == Exit.BAD_INPUT
    assert expected in capsys.readouterr().err
    assert not list(nowhere.iterdir())


def test_an_etcd_that_is_not_there_ends_with_4(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["status", "--etcd", "127.0.0.1:9", "--cluster", "a"]) == Exit.UNREACHABLE
    assert "etcd cannot be reached" in capsys.readouterr().err


def test_down_without_a_cluster_is_fine(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["local", "down"]) == Exit.OK
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [("node", "restart"), ("node", "restart", "n1", "--pending")])
def test_restart_takes_a_node_or_all_that_wait(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(list(argv)) == Exit.BAD_INPUT
    assert "--pending" in capsys.readouterr().err


LONG = "x" * 64
NAMES = [
    (("users", "create", "pg_x", "--role", "reader"), "'pg_x' cannot be a name"),
    (("users", "create", "", "--role", "reader"), "'' cannot be a name"),
    (("users", "create", "a\nb", "--role", "reader"), "control characters"),
    (("users", "create", "pgbouncer", "--role", "reader"), "pgbouncer is reserved"),
    (("users", "set-role", LONG, "--role", "reader"), LONG),
    (("users", "set-password", "repluser"), "repluser is reserved"),
    (("users", "drop", "flypgadmin", "--yes"), "flypgadmin is reserved"),
    (("databases", "create", "pgbouncer"), "pgbouncer is reserved"),
    (("databases", "create", " "), "' ' cannot be a name"),
    (("databases", "drop", "postgres", "--yes"), "postgres is reserved"),
    (("databases", "drop", "template1", "--yes"), "template1 is reserved"),
    (("attach", "other", "--database", "postgres"), "postgres is reserved"),
    (("attach", "other", "--user", "pg_x"), "pg_x"),
    (("attach", "other", "--variable-name", "DATABASE URL"), "'DATABASE URL'"),
    (("attach", "other", "--host", "no host"), "'no host'"),
    (("attach", "1st"), "'1st' gives no name"),
    (("detach", "other", "--user", "postgres"), "postgres is reserved"),
    (("connection-string", "--user", ""), "--user ''"),
    (("connection-string", "--database", LONG), f"--database '{LONG}'"),
]


@pytest.mark.parametrize(("argv", "reason"), NAMES, ids=[" ".join(argv)[:40] for argv, _ in NAMES])
def test_names_that_cannot_be_are_bad_input(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], reason: str
) -> None:
    """Before anything is asked of a cluster."""
    assert program.main(argv) == Exit.BAD_INPUT
    assert reason in capsys.readouterr().err
