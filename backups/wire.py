"""The line protocol between PostgreSQL's archive and restore commands and us: one line asked, one line answered.

Fields are separated by tabs. Answers: `ok`, `no WHY`, `end WHY` (to a push: no, and ask no more), `stop WHY`. Each
connection has a thread of its own: there is one at a time, PostgreSQL asks for one file after the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from cluster.errors import FlypgError
from postgres.command import Account

log = logging.getLogger("flypg.backups")
LINE_LIMIT = 8192
PERL = Path("/usr/bin/perl")


class LineServer:
    """Answers lines on a unix socket that only `owner` (None: we) may connect to."""

    def __init__(self, path: Path, handle: Callable[[list[str]], str], owner: Account | None) -> None:
        self._path = path
        self._handle = handle
        self._owner = owner
        self._listener: socket.socket | None = None
        self._made: tuple[int, int] | None = None  # device and inode of our socket

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        if self._owner is not None:  # the directory is that user's own: what it may have put there is not followed
            os.chown(self._path, self._owner.uid, self._owner.gid, follow_symlinks=False)
        made = self._path.lstat()
        self._made = made.st_dev, made.st_ino
        listener.listen(16)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="wal-accept", daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None
        with contextlib.suppress(FileNotFoundError):
            there = self._path.lstat()
            if (there.st_dev, there.st_ino) == self._made:  # else one that has come after us answers there
                self._path.unlink()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), name="wal-ask", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the asker has gone: it will ask again
            connection.settimeout(60)
            line = b""
            while not line.endswith(b"\n") and len(line) < LINE_LIMIT:
                piece = connection.recv(LINE_LIMIT)
                if not piece:
                    return
                line += piece
            try:
                answer = self._handle(line[:-1].decode(errors="replace").split("\t"))
            except FlypgError as error:
                answer = f"stop {error}"
            connection.sendall(" ".join(answer.split()).encode() + b"\n")


def ask(path: Path, *fields: str, timeout_s: float = 5.0) -> str:
    """Ask a LineServer. Raises OSError when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall("\t".join(fields).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = connection.recv(LINE_LIMIT)
            if not piece:
                raise OSError(f"{path}: hung up")
            answer += piece
        return answer[:-1].decode(errors="replace")


def reachable(program: Path) -> bool:
    """May every user run `program`: is it, and every directory above it, open to others?"""
    try:
        real = program.resolve(strict=True)
        return all(p.stat().st_mode & stat.S_IXOTH for p in (real, *real.parents))
    except OSError:
        return False


def interpreter(owner: Account | None) -> str:
    """A Python that the server's user can run; ours may lie in a home directory that is closed to it."""
    if owner is None:
        return os.path.realpath(sys.executable)
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if reachable(Path(candidate)):
            return os.path.realpath(candidate)
    raise FlypgError(
        f"{owner.name} can run no Python: install python3 where every user can run it, for archive_command"
    )


def client(directory: Path, owner: Account | None) -> str:
    """What a shell runs to ask us, without its arguments; the program is copied to where the server's user can read it.

    Debian's essential perl where there is one: it runs for every segment, and has asked before Python has started.
    """
    if reachable(PERL):
        # said nowhere else: perl complains of a locale that is not installed, in PostgreSQL's log, for every segment
        return f'PERL_BADLANG=0 "{PERL}" -w "{install_client(directory, "walpush.pl")}"'
    return f'"{interpreter(owner)}" -I -S "{install_client(directory, "walpush.py")}"'


def install_client(directory: Path, name: str) -> Path:
    """Copy a client into `directory`; returns its path."""
    source = Path(__file__).resolve().parent.parent / "flypg" / name
    target = directory / name
    if not target.exists() or target.read_bytes() != source.read_bytes():
        temporary = target.with_name(f".{name}-{os.getpid()}")
        shutil.copyfile(source, temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
    return target


def archive_command(directory: Path, socket_path: Path, owner: Account | None) -> str:
    """The archive_command of a server that is run by `owner`."""
    return f'{client(directory, owner)} push "{socket_path}" "%p"'


def restore_command(directory: Path, socket_path: Path, owner: Account | None) -> str:
    return f'{client(directory, owner)} get "{socket_path}" %f "%p"'
