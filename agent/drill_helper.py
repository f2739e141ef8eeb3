"""Breaks something on this node for a drill, and undoes it by itself when the drill is over, dies, or takes too long.

A process of its own, so that the agent itself may be what is broken. Its order is one line of JSON on standard input;
it answers in lines of JSON on standard output. `mode` says what it is to do:

    offer   say which faults can be had here, and why not the others
    drill   listen for the drill, break, undo
    mend    undo what a helper has left behind that was killed itself

Theory of operation. The helper listens on a port of its own and breaks nothing until the drill has said `go` there:
what could not be renewed is never begun. From then on a line must come at least every SILENCE_S. When the connection
closes, the lines stop, `end` comes or the time is up, everything is undone. A line is `WORD NUMBER TAG`: the number
rises with each line, and the tag covers both, so that no line can be made up or sent twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

from agent.drill_network import Facts, Failed
from agent.drill_victims import Broken, left_behind, offer
from cluster.drill_orders import FAULTS, same, tag

GO_S = 10.0  # the drill must come so soon after the order
SILENCE_S = 5.0
ANSWER_S = 2.0
LONGEST_LINE = 200
COMMAND = "import sys; sys.path.insert(0, {root!r}); from agent.drill_helper import main; main()"


def say(**words: object) -> None:
    """Tell the agent. Nobody there, or not reading: no matter."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(words).encode() + b"\n")


def listen(addresses: list[str], port: int) -> list[socket.socket]:
    """One port on all these addresses; `port` 0: a free one. Raises Failed."""
    found: list[socket.socket] = []
    problem: OSError | None = None
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            listener.listen(8)
        except OSError as error:
            listener.close()
            problem = error
            continue
        port = listener.getsockname()[1]
        found.append(listener)
    if not found:
        raise Failed(f"no port to listen on: {problem}")
    return found


class Session:
    """One fault, from the drill's `go` to its undoing."""

    def __init__(self, broken: Broken, fault: str, for_s: float, key: str, listeners: list[socket.socket]) -> None:
        self._broken = broken
        self._fault = fault
        self._for_s = for_s
        self._key = bytes.fromhex(key)
        self._listeners = listeners
        self._port = listeners[0].getsockname()[1]
        self._clients: dict[socket.socket, bytes] = {}  # and what each has sent of its next line
        self._drill: socket.socket | None = None  # whoever said `go`
        self._number = 0
        self._ends_at = time.monotonic() + GO_S
        self._heard_by = self._ends_at

    def run(self) -> str:
        """Serve until it is over; everything is undone then. Returns why it was over."""
        why = ""
        try:
            while not why:
                why = self._turn()
        finally:
            said = self._broken.mend()
            if self._drill is not None:
                self._answer(self._drill, f"undone {said}".strip())
            for one in [*self._listeners, *self._clients]:
                one.close()
        return why if not said or said.startswith("agent ") else f"{why}; {said}"

    def _turn(self) -> str:
        now = time.monotonic()
        if now >= self._ends_at:
            return "its time was up" if self._drill else "the drill did not come: nothing was broken"
        if now >= self._heard_by:
            return f"the drill was silent for {SILENCE_S:g} s"
        left = min(self._ends_at, self._heard_by) - now
        ready, _, _ = select.select([*self._listeners, *self._clients], [], [], min(left, 0.5))
        for one in ready:
            if one in self._listeners:
                self._accept(one)
            elif why := self._read(one):
                return why
        return ""

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            client.settimeout(ANSWER_S)
            if len(self._clients) >= 8:
                client.close()
            else:
                self._clients[client] = b""

    def _read(self, client: socket.socket) -> str:
        """Why it is over; "" when it is not."""
        try:
            data = client.recv(4096)
        except OSError:
            data = b""
        *lines, rest = (self._clients[client] + data).split(b"\n")
        if not data or len(rest) > LONGEST_LINE:
            self._drop(client)
            return "the drill died" if client is self._drill else ""
        self._clients[client] = rest
        for line in lines:
            if why := self._obey(client, line.decode("ascii", "replace")):
                return why
        return ""

    def _drop(self, client: socket.socket) -> None:
        self._clients.pop(client, None)
        client.close()

    def _obey(self, client: socket.socket, line: str) -> str:
        word, _, rest = line.partition(" ")
        number, _, given = rest.partition(" ")
        fresh = number.isascii() and number.isdigit() and len(number) < 10 and int(number) > self._number
        if not fresh or not same(given, tag(self._key, word, number)):
            self._answer(client, "refused: not signed by this drill, or said before")
            if client is not self._drill:
                self._drop(client)
            return ""
        self._number = int(number)
        if word == "go" and self._drill is None:
            return self._go(client)
        if word == "renew" and client is self._drill:
            self._heard_by = time.monotonic() + SILENCE_S
            self._answer(client, "ok")
        elif word == "end" and client is self._drill:
            return "the drill was over"
        else:
            self._answer(client, f"refused: {word[:20]!r} is not what comes now")
        return ""

    def _go(self, client: socket.socket) -> str:
        self._drill = client
        self._ends_at = time.monotonic() + self._for_s
        try:
            self._broken.begin(self._fault, self._port)
        except (Failed, OSError) as error:
            self._answer(client, f"failed: {error}".replace("\n", " "))
            return f"it could not be broken: {error}"
        self._heard_by = time.monotonic() + SILENCE_S
        self._answer(client, "broken")
        return ""

    def _answer(self, client: socket.socket, text: str) -> None:
        with contextlib.suppress(OSError):
            client.sendall(text.encode("utf-8", "replace") + b"\n")


def alone(state: str) -> bool:
    """Is no other helper at work on this node? The lock ends with this process."""
    descriptor = os.open(state + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def _end(number: int, frame: object) -> None:
    raise SystemExit(f"signal {number}")  # whatever is broken is mended on the way out


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    os.set_blocking(1, False)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")  # only root may
    order = json.loads(sys.stdin.readline())
    facts = Facts(
        agent=tuple(order["agent"]),
        data_dir=order["data_dir"],
        pgdata=order["pgdata"],
        state=order["state"],
        peers=tuple(order["peers"]),
        etcd=tuple((host, port) for host, port in order["etcd"]),
        client_ports=tuple(order["client_ports"]),
        ports=tuple(order["ports"]),
    )
    if order["mode"] == "offer":
        say(faults=offer(facts, FAULTS))
        return
    if not alone(facts.state):
        say(error="another drill is under way on this node")
        return
    before = left_behind(facts)
    if before is not None:
        before.mend()
    if order["mode"] == "mend":
        say(ended="mended" if before is not None else "")
        return
    try:
        listeners = listen(order["listen"], order["port"])
    except Failed as error:
        say(error=str(error))
        return
    session = Session(Broken(facts), order["fault"], order["for_s"], order["key"], listeners)
    say(port=listeners[0].getsockname()[1])
    say(ended=session.run())
