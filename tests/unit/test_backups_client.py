"""What PostgreSQL runs for each WAL file, in its two languages: the same question, the same exit codes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups import wire
from backups.wire import LineServer, archive_command, restore_command

ABSENT = Path("/nonexistent/perl")


@pytest.fixture(params=["perl", "python"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(wire, "PERL", ABSENT)
    elif not wire.PERL.exists():
        pytest.skip(f"there is no {wire.PERL}")
    return str(request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, since a socket's path must be, and with what a shell might stumble over."""
    with tempfile.TemporaryDirectory(prefix="fp ", dir="/tmp") as name:
        (Path(name) / "data" / "pg_wal").mkdir(parents=True)
        yield Path(name)


def command(verb: str, place: Path) -> str:
    """As PostgreSQL makes it from the setting."""
    if verb == "push":
        return archive_command(place, place / "sock", None).replace("%p", "pg_wal/000000010000000000000001")
    setting = restore_command(place, place / "sock", None)
    return setting.replace("%f", "00000002.history").replace("%p", "pg_wal/RECOVERYHISTORY")


def run(verb: str, place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As PostgreSQL runs it: by a shell, from the data directory."""
    return subprocess.run(
        ["/bin/sh", "-c", command(verb, place)],
        cwd=place / "data",
        env={"PATH": os.defpath, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_language_is_what_is_there(language: str, place: Path) -> None:
    assert ("walpush.pl" in command("push", place)) == (language == "perl")


def test_it_asks_for_the_file_by_its_whole_path(language: str, place: Path) -> None:
    asked: list[list[str]] = []
    lines = LineServer(place / "sock", lambda fields: asked.append(fields) or "ok", None)  # type: ignore[func-returns-value]
    lines.start()
    try:
        assert (run("push", place).returncode, run("get", place).returncode) == (0, 0)
    finally:
        lines.stop()
    data = place / "data"
    assert asked == [
        ["push", f"{data}/pg_wal/000000010000000000000001"],
        ["get", "00000002.history", f"{data}/pg_wal/RECOVERYHISTORY"],
    ]


@pytest.mark.parametrize(
    ("verb", "answer", "code", "said"),
    [
        ("push", "ok", 0, ""),
        ("push", "ok and more", 0, ""),
        ("push", "no the repository is away", 1, "flypg: the repository is away\n"),
        ("push", "stop what happened?", 1, "flypg: what happened?\n"),
        ("push", "", 1, ""),
        ("push", "okay", 1, ""),
        ("push", "end a switchover waits", 126, "flypg: a switchover waits\n"),
        ("get", "end what is that", 254, "flypg: what is that\n"),
        ("get", "ok", 0, ""),
        ("get", "no", 1, ""),
        ("get", "no such file", 1, "flypg: such file\n"),
        ("get", "stop the repository is away", 254, "flypg: the repository is away\n"),
        ("get", "what", 254, ""),  # not understood is not "there is none": recovery would end too early
        ("get", "", 254, ""),
        ("push", "no " + "long " * 1500, 1, None),
        ("get", "no ümlaut", 1, "flypg: ümlaut\n"),
    ],
)
def test_answers(language: str, place: Path, verb: str, answer: str, code: int, said: str | None) -> None:
    lines = LineServer(place / "sock", lambda _: answer, None)
    lines.start()
    try:
        done = run(verb, place, LC_ALL="C.UTF-8")
    finally:
        lines.stop()
    assert (done.returncode, done.stdout) == (code, "")
    assert said is None or done.stderr == said


@pytest.mark.parametrize(("verb", "code"), [("push", 1), ("get", 254)])
def test_a_server_that_hangs_up_is_not_an_answer(language: str, place: Path, verb: str, code: int) -> None:
    """Before it has read, after it has read, and in the middle of an answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "sock"))
        listener.listen(4)

        def serve() -> None:
            for reply in (None, b"", b"ok"):
                connection, _ = listener.accept()
                with connection:
                    if reply is not None:
                        connection.recv(4096)
                        connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(3):
            done = run(verb, place)
            assert done.returncode == code
            assert f"flypg does not answer at {place}/sock" in done.stderr
        thread.join()


def test_it_waits_for_flypg_to_come_back(language: str, place: Path) -> None:
    lines = LineServer(place / "sock", lambda _: "ok", None)
    later = threading.Timer(0.7, lines.start)
    later.start()
    try:
        assert run("push", place).returncode == 0
    finally:
        later.join()
        lines.stop()


@pytest.mark.parametrize(("verb", "code"), [("push", 1), ("get", 254)])
def test_it_does_not_wait_for_ever(
    language: str, place: Path, verb: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there, and somebody who does not answer; with the limits cut short in the copies that are run."""
    prepared = command(verb, place)
    script = next(place.glob("walpush.*"))
    text = script.read_text()
    for long, short in (
        ("CONNECT_S = 10.0", "CONNECT_S = 0.5"),
        ("CONNECT_S = 10;", "CONNECT_S = 0;"),
        ('"push": 60.0, "get": 600.0', '"push": 1.0, "get": 1.0'),
        ("push => 60, get => 600", "push => 1, get => 1"),
    ):
        text = text.replace(long, short)
    script.write_text(text)
    monkeypatch.setattr(wire, "install_client", lambda directory, name: directory / name)
    assert command(verb, place) == prepared
    began = time.monotonic()
    done = run(verb, place)
    assert (done.returncode, f"flypg does not answer at {place}/sock: " in done.stderr) == (code, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "sock"))
        listener.listen(1)
        done = run(verb, place)
        assert (done.returncode, "timed out" in done.stderr) == (code, True)
        with contextlib.ExitStack() as waiting:  # and one whose queue is full, as of a process that is frozen
            _fill(place / "sock", waiting)
            done = run(verb, place)
    assert (done.returncode, f"flypg does not answer at {place}/sock: " in done.stderr) == (code, True)
    assert time.monotonic() - began < 30


def _fill(path: Path, held: contextlib.ExitStack) -> None:
    """Connect until no more connections are taken."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(100):
            connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.setblocking(False)
            connection.connect(str(path))


def test_one_that_ends_leaves_the_socket_of_its_successor_alone(place: Path) -> None:
    """An archiver that its agent has lost ends two minutes later, when another answers at the same place."""
    old, new = LineServer(place / "sock", lambda _: "no", None), LineServer(place / "sock", lambda _: "ok", None)
    old.start()
    new.start()
    try:
        old.stop()
        assert wire.ask(place / "sock", "push", "x") == "ok"
    finally:
        new.stop()
    assert not (place / "sock").exists()


def test_a_locale_that_is_not_installed_is_nobody_s_business(language: str, place: Path) -> None:
    """perl says five lines about it, which would be in PostgreSQL's log for every segment."""
    lines = LineServer(place / "sock", lambda _: "ok", None)
    lines.start()
    try:
        assert run("push", place, LC_ALL="xx_YY.UTF-8").stderr == ""
    finally:
        lines.stop()


def test_without_arguments_it_fails_as_postgresql_understands(language: str, place: Path) -> None:
    """More than 125 ends the archiver."""
    prefix = command("push", place).partition(" push ")[0]
    for words in ("", "push"):
        done = subprocess.run(["/bin/sh", "-c", f"{prefix} {words}"], capture_output=True, cwd=place, timeout=60)
        assert done.returncode == 1
