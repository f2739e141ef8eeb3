"""Stops a PostgreSQL whose authority has run out, whatever has become of the agent that armed it.

Run as `python -I -S fence_process.py PID_FILE`: a process of its own that shares nothing with the agent and imports
next to nothing, so that it fits anywhere and nothing can hold it up.

Commands come as lines on standard input:
    arm VALID_UNTIL PID START    stop postmaster PID at VALID_UNTIL (seconds of CLOCK_BOOTTIME, `inf` for never);
                                 START is its start time in ticks since boot, so that a recycled pid is left alone
    disarm                       there is nothing to stop
    unpause TIME PID START       RESUME (SIGUSR2) this PgBouncer at TIME, or soon after the agent's death (a PAUSE would
                                 outlive it, and its clients wait for ever); `inf` for never
    pause PID START              PAUSE (SIGUSR1) this PgBouncer the moment the postmaster dies: it would turn clients
                                 away whose server refuses; 0 for none
Each is answered on standard output by `ok LINE`; a stop is told by `fired PID`, a PAUSE by `paused PID`. When standard
input ends, the agent has died: the fence keeps its last order, so that the next agent has time to take over, and leaves
when there is none.
"""

import contextlib
import fcntl
import os
import select
import signal
import sys
import time

GRACE_S = 0.5  # from SIGQUIT to SIGKILL
HOLD_S = 10.0  # the longest PAUSE, unless the agent says otherwise
BEQUEST_S = 3.0  # from the agent's death to the RESUME: the next agent may be here before
LONGEST_SLEEP_S = 0.2  # poll() stands still while the machine sleeps, CLOCK_BOOTTIME does not


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time (ticks) of a live process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def family(root: int, exe: str, directory: str, *, latest: float) -> list[int]:
    """All below `root` (0: nobody), and what a death has orphaned: the same program in the same data directory, started
    before `latest` (boottime)."""
    parents: dict[int, int] = {}
    related = {root} if root else set()
    ticks = latest * os.sysconf("SC_CLK_TCK")
    for name in os.listdir("/proc"):
        if not name.isdigit() or (found := stat(int(name))) is None:
            continue
        parents[int(name)] = found[0]
        if found[1] <= ticks and exe and link(int(name), "exe") == exe and link(int(name), "cwd") == directory:
            related.add(int(name))
    more = related
    while more:
        more = {child for child, parent in parents.items() if parent in related} - related
        related |= more
    return sorted(related - {root, os.getpid()})


def alive_pipe(postmaster: int) -> int:
    """The pipe by whose end PostgreSQL's processes know that their postmaster has died (its only writer), open to read;
    -1 when it is not found. It is told from the logger's, which ends in 1 and 2, and from PostgreSQL 13's pipe for
    signals, which nobody may wait to write to."""
    ends: dict[str, dict[int, tuple[str, bool]]] = {}
    try:
        for number in os.listdir(f"/proc/{postmaster}/fd"):
            pipe = link(postmaster, f"fd/{number}")
            if int(number) > 2 and pipe.startswith("pipe:"):
                with open(f"/proc/{postmaster}/fdinfo/{number}") as file:
                    flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
                ends.setdefault(pipe, {})[flags & os.O_ACCMODE] = (number, bool(flags & os.O_NONBLOCK))
        for found in ends.values():
            if os.O_WRONLY in found and not found[os.O_WRONLY][1] and found.get(os.O_RDONLY, ("", False))[1]:
                return os.open(f"/proc/{postmaster}/fd/{found[os.O_RDONLY][0]}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # it has just ended
        pass
    return -1


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


class Fence:
    def __init__(self) -> None:
        self.valid_until = float("inf")
        self.pid = 0  # 0: disarmed
        self.start = 0
        self.pidfd = -1
        self.exe = self.directory = ""
        self.died_at = float("inf")
        self.buffer = b""
        self.attended = True  # is there an agent?
        self.unpause_at = float("inf")
        self.pooler = (0, 0)  # pid and start time of the PgBouncer
        self.pause_at_death = (0, 0)  # the same, of one that is led to our postmaster
        self.pipe = -1
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)

    def run(self) -> None:
        while self.attended or self.has_orders() or self.unpause_at < float("inf"):
            for descriptor, _ in self.poll.poll(self.sleep_ms()):
                if descriptor == 0:
                    self.read()
                else:
                    self.postmaster_died()
            if self.pid and boottime() >= self.valid_until:
                self.fire()
            if boottime() >= self.unpause_at:
                self.unpause_at = float("inf")
                self.unpause()

    def has_orders(self) -> bool:
        """One without an end is of use for as long as its postmaster lives: an agent that is back puts an end to it."""
        return self.pid != 0 and (self.pidfd >= 0 or self.valid_until < float("inf"))

    def sleep_ms(self) -> float | None:
        next_at = min(self.valid_until if self.pid else float("inf"), self.unpause_at)
        if next_at == float("inf"):
            return None
        return max(0.0, min(next_at - boottime(), LONGEST_SLEEP_S)) * 1000 + 1

    def read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self.attended = False
            self.poll.unregister(0)
            if self.pooler[0]:  # the kernel may have paused it in this very moment, of which nobody has told us
                self.unpause_at = min(self.unpause_at, boottime() + BEQUEST_S)
            return
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.obey(line.decode())
            answer(f"ok {line.decode()}")

    def obey(self, line: str) -> None:
        word, *rest = line.split()
        if word == "arm":
            self.arm(float(rest[0]), int(rest[1]), int(rest[2]))
        elif word == "disarm":
            self.disarm()
        elif word == "unpause":
            self.unpause_at, self.pooler = float(rest[0]), (int(rest[1]), int(rest[2]))
        elif word == "pause":
            self.pause_at_death = (int(rest[0]), int(rest[1]))
            self.listen_for_death()

    def listen_for_death(self) -> None:
        """Let the kernel send the PAUSE: PostgreSQL's backends end at once when their postmaster dies, and its port
        refuses; what we could send would come too late."""
        if self.pipe >= 0:
            os.close(self.pipe)
        pid, start = self.pause_at_death
        found = stat(pid) if pid else None
        self.pipe = alive_pipe(self.pid) if self.pid and found is not None and found[1] == start else -1
        if self.pipe >= 0:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fcntl.fcntl(self.pipe, fcntl.F_SETOWN, pid)
                fcntl.fcntl(self.pipe, fcntl.F_SETSIG, signal.SIGUSR1)
                fcntl.fcntl(self.pipe, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    def pause(self) -> None:
        """Hold the clients of the PgBouncer that is led to our postmaster, if the kernel has not done so already."""
        pid, start = self.pause_at_death
        found = stat(pid) if pid else None
        if found is None or found[1] != start:
            return
        if self.unpause_at == float("inf"):
            self.unpause_at, self.pooler = boottime() + (HOLD_S if self.attended else BEQUEST_S), (pid, start)
        send(pid, signal.SIGUSR1)
        answer(f"paused {pid}")

    def unpause(self) -> None:
        """By signal: a suspended PgBouncer takes no new connection of its console."""
        pid, start = self.pooler
        found = stat(pid)
        if found is not None and found[1] == start:
            send(pid, signal.SIGUSR2)

    def arm(self, valid_until: float, pid: int, start: int) -> None:
        self.valid_until = valid_until
        if (pid, start) == (self.pid, self.start):
            return
        self.disarm()
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        found = stat(pid)
        if found is None or found[1] != start:  # gone, or its pid belongs to another process now
            self.disarm()
            return
        self.valid_until, self.pid, self.start = valid_until, pid, start
        self.exe, self.directory = link(pid, "exe"), link(pid, "cwd")
        self.poll.register(self.pidfd, select.POLLIN)
        self.listen_for_death()

    def disarm(self) -> None:
        self.pid = 0
        self.died_at = self.valid_until = float("inf")
        if self.pidfd >= 0:
            self.forget_postmaster()
        self.listen_for_death()

    def forget_postmaster(self) -> None:
        with contextlib.suppress(KeyError):  # it died, or was never registered
            self.poll.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1

    def postmaster_died(self) -> None:
        """Its backends may outlive it for a moment, so the order stands."""
        self.pause()
        self.died_at = boottime()
        self.forget_postmaster()

    def fire(self) -> None:
        """Immediate shutdown; what is left after the grace is killed. The postmaster is frozen for that, so that it
        forks no more, and killed last. One that was started after ours had died is somebody else's business."""
        answer(f"fired {self.pid}")
        self.pause()
        latest = min(self.died_at, boottime())
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGQUIT)
            deadline = boottime() + GRACE_S
            while boottime() < deadline and stat(self.pid) is not None:
                time.sleep(0.01)
            if stat(self.pid) is not None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
                self.kill_family(self.pid, latest)
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.kill_family(0, latest)
        self.disarm()

    def kill_family(self, root: int, latest: float) -> None:
        for member in family(root, self.exe, self.directory, latest=latest):
            send(member, signal.SIGKILL)


def answer(line: str) -> None:
    """Tell the agent. Nobody there, or not reading: no matter."""
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        return


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    os.set_blocking(1, False)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")  # the last one to be sacrificed; only root may
    pid_file = sys.argv[1]
    own = stat(os.getpid())
    with open(pid_file + ".new", "w") as file:
        file.write(f"{os.getpid()} {own[1] if own else 0}\n")
    os.replace(pid_file + ".new", pid_file)
    answer("ready")
    Fence().run()


if __name__ == "__main__":
    main()
