"""The one door to programs: an argument list, a deadline, a plain locale, and nothing left behind.

Programs of PostgreSQL refuse to run as root, so a user can be named. A server is different: it is launched into its own
session, outlives us, and is only remembered so that its end leaves no zombie.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import CommandFailed, CommandTimedOut

LAST_WORDS = 2000  # characters of a program's output that go into an error
ENDING_S = 5.0  # how long we wait for a program that was killed

_running: set[int] = set()  # programs that `run` waits for; nobody else may reap these
_servers: dict[int, subprocess.Popen[bytes]] = {}  # launched servers that are our children


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system to run programs and own files as."""

    name: str
    uid: int
    gid: int
    home: str = "/nonexistent"


def account(name: str | None) -> Account | None:
    """The account behind `name`; None when we already are that user or may not change it."""
    if name is None or os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise CommandFailed(f"there is no user {name!r} on this machine to run PostgreSQL as") from None
    return Account(name, entry.pw_uid, entry.pw_gid, entry.pw_dir) if entry.pw_uid != 0 else None


def closed_above(path: Path, user: Account | None) -> Path | None:
    """The first directory above `path` that `user` may not enter; None: nothing keeps it out.

    Root's home is closed to others, and so is everything below it. `user` None: programs run as we do.
    """
    if user is None:
        return None
    for directory in (*reversed(path.parents), *reversed(path.resolve().parents)):  # a link's way, and its target's
        try:
            found = directory.stat()
        except FileNotFoundError:
            continue  # it is yet to be made
        mine, ours = found.st_uid == user.uid, found.st_gid == user.gid
        opens = stat.S_IXUSR if mine else stat.S_IXGRP if ours else stat.S_IXOTH
        if not found.st_mode & opens:
            return directory
    return None


def plain_environment(extra: Mapping[str, str] | None = None, user: Account | None = None) -> dict[str, str]:
    """Our environment without libpq's variables and passwords, with messages in English.

    `user`: whose home it names, None: ours. libpq looks for ~/.postgresql and gives up the connection when it may not:
    root's home is closed to everybody else, and so may be root's own directory for temporary files.
    """
    ours = ("HOME", "TMPDIR") if user is None else ()
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "TZ", *ours)}
    home = {} if user is None else {"HOME": user.home}
    return {"PATH": os.defpath, **kept, **home, "LC_ALL": "C", **(extra or {})}


def last_words(output: bytes) -> str:
    return output.decode(errors="replace").replace("\r", "\n").strip()[-LAST_WORDS:]


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    user: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
    stdin: bytes | None = None,
) -> bytes:
    """Run a program to its end and return what it printed. `stdin`: what it reads; None: nothing.

    Raises CommandFailed with its last words, CommandTimedOut after `timeout_s` seconds; it is killed then, with all
    that it started. `on_stderr` gets its messages as they come.
    """
    name = Path(argv[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *map(str, argv),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=plain_environment(env, user),
            cwd=cwd or "/",
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} could not be started: {error.strerror or error}") from error
    _running.add(process.pid)
    try:
        async with asyncio.timeout(timeout_s):
            output, errors, exit_code, _ = await asyncio.gather(
                _drain(process.stdout, None),
                _drain(process.stderr, on_stderr),
                process.wait(),
                _feed(process.stdin, stdin),
            )
    except TimeoutError:
        raise CommandTimedOut(f"{name} did not finish within {timeout_s:g} s and was killed") from None
    finally:
        if process.returncode is None:  # timed out, or we were cancelled
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait_for(process.wait(), ENDING_S)
        _running.discard(process.pid)
    if exit_code != 0:
        raise CommandFailed(f"{name} exited {exit_code}: {last_words(errors or output)}")
    return output


async def _feed(stream: asyncio.StreamWriter | None, data: bytes | None) -> None:
    if stream is None or data is None:
        return
    with contextlib.suppress(ConnectionError):  # a program that does not want it says why by itself
        stream.write(data)
        await stream.drain()
    stream.close()


async def _drain(stream: asyncio.StreamReader | None, each: Callable[[bytes], None] | None) -> bytes:
    """Everything in `stream`, but only its last 64 kB once it is longer than twice that."""
    assert stream is not None, "the program was started with pipes"
    kept = bytearray()
    while chunk := await stream.read(16384):
        if each is not None:
            each(chunk)
        kept += chunk
        if each is not None and len(kept) > 131072:
            del kept[:-65536]
    return bytes(kept)


def spawn(argv: Sequence[str | Path], *, user: Account | None, output: Path, env: Mapping[str, str]) -> int:
    """Launch a server that outlives us, in its own session, and return its process id.

    Its output goes to `output`, started afresh. Raises CommandFailed when it cannot be launched.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if user is not None:
            os.fchown(descriptor, user.uid, user.gid)
        process = subprocess.Popen(
            [str(a) for a in argv],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=plain_environment(env, user),
            cwd="/",
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} could not be started: {error.strerror or error}") from error
    finally:
        os.close(descriptor)
    _servers[process.pid] = process
    return int(process.pid)


def reap(pid: int) -> None:
    """Leave no zombie of a server that has ended, whether we launched it or it was handed to us."""
    process = _servers.get(pid)
    if process is not None:
        if process.poll() is not None:
            del _servers[pid]
        return
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def may_reap(pid: int) -> bool:
    """Is nobody else waiting for this child?"""
    return pid not in _running
