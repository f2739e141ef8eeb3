"""Streaming between two servers of the model: a receiver below, a walsender above, a TCP connection between them.

Each end notices the loss of the other by itself: at once when the other's host says so, after `TIMEOUT_S` when it is
silent. What was sent before a cut arrives after it, if both ends still stand: so does an acknowledgement.
"""

from __future__ import annotations

from typing import Any

from postgres.instance import Data, Run
from tests.simulation.server import NOBODYS, Names, Server

TIMEOUT_S = 3.0  # wal_receiver_timeout, wal_sender_timeout


def stream_problem(below: Server, above: Server) -> str:
    """Why `below` cannot stream from `above`, as PostgreSQL would find: by timelines and positions, not by content."""
    if below.system_id != above.system_id:
        return "database system identifier differs"
    if above.timeline < below.timeline:
        return f"its highest timeline {above.timeline} is behind recovery timeline {below.timeline}"
    if above.timeline > below.timeline:
        ends = dict(above.history)
        if below.timeline not in ends:
            return f"timeline {above.timeline} is not a child of timeline {below.timeline}"
        if ends[below.timeline] < len(below.wal):
            return f"timeline {above.timeline} forked off before the current recovery point"
        if any(t not in below.files and t not in above.files for t in range(below.timeline + 1, above.timeline + 1)):
            return "a timeline history file is missing"
    elif len(below.wal) > len(above.wal):
        return "requested starting point is ahead of the WAL flush position"
    if len(below.wal) < above.oldest:
        return "requested WAL segment has already been removed"
    return ""


def connect(below: Server) -> str:
    """Start a receiver to the configured upstream. What keeps it from it; "" when it has been started."""
    upstream = below.conninfo
    assert upstream is not None
    host = below.ledger.misrouted.get((below.node, upstream.host), upstream.host)
    above = below.ledger.servers.get(host)
    if above is None or above is below:
        return "no such host"
    if not below.world.talk(below.node, above.node) or above.ice.depth:
        return "no answer"
    if above.state is not Run.UP or above.stopping or above.data is not Data.PRESENT:
        return "connection refused"
    if any(link.below is below for link in above.senders):
        return "its replication slot is still active"
    problem = stream_problem(below, above)
    if not problem:
        link = Link(below, above)
        below.stream_problem = ""
        below.receiver = link
        above.senders.append(link)
        below.ledger.links[link] = None
        below.files.update(range(below.timeline + 1, above.timeline + 1))
        below.world.say(below.node, f"streams from {above.node} as {link.name} at {below.position}")
        link.kick()
        link.acked = len(below.wal)
        link.caught_up()
    return problem


class Link:
    """One walsender above and one receiver below."""

    __slots__ = (
        "above",
        "acked",
        "backlog",
        "below",
        "disturbed_at",
        "due_above",
        "due_below",
        "name",
        "names",
        "open_above",
        "open_below",
        "sent",
        "streaming",
        "upstream",
        "world",
    )

    def __init__(self, below: Server, above: Server) -> None:
        assert below.conninfo is not None
        self.world = below.world
        self.below = below
        self.above = above
        self.upstream = below.conninfo
        self.name = self.upstream.application_name(below.node)
        self.names: Names = above.conf  # what this walsender has read of the configuration
        self.sent = len(below.wal)
        self.acked = 0
        self.streaming = False
        self.open_above = self.open_below = True
        self.backlog: list[tuple[Any, ...]] = []  # on the wire, in order, since the network is cut
        self.disturbed_at: float | None = None
        self.due_above = self.due_below = 0.0  # nothing overtakes what was sent before

    @property
    def counted(self) -> bool:
        return self.streaming and self.name in self.names[0]

    # -- above ----------------------------------------------------------------------------------

    def kick(self) -> None:
        """Send what there is."""
        above = self.above
        if not self.open_above or above.ice.depth or self.sent >= len(above.wal):
            return
        records = above.wal[self.sent :]
        message = (self._data, self.sent, records, above.timeline, above.history)
        self.sent = len(above.wal)
        world = self.world
        self.due_below = max(self.due_below, world.now + world.latency())
        world.after(self.due_below - world.now, self._arrive, message)

    def adopt(self, run: int) -> None:
        if self.open_above and run == self.above.run:
            self.names = self.above.conf
            self.above.release(self)

    def caught_up(self) -> None:
        if not self.streaming and self.acked >= len(self.above.wal) - 1:
            self.streaming = True

    def _ack(self, count: int) -> None:
        if self.open_above:
            self.acked = max(self.acked, count)
            self.caught_up()
            self.above.release(self)

    def close_above(self, *, silent: bool = False) -> None:
        if self.open_above:
            self.open_above = False
            self.above.senders.remove(self)
            self._closed(silent, self.close_below, self.below)

    # -- on the wire ----------------------------------------------------------------------------

    def _arrive(self, message: tuple[Any, ...]) -> None:
        if not self.open_above and not self.open_below:
            return
        if self.backlog or not self.world.talk(self.below.node, self.above.node):
            self.backlog.append(message)
            return
        function, *arguments = message
        side = self.below if function == self._data else self.above
        side.ice.call(function, *arguments)

    def look(self) -> None:
        """Does it still work? A silent end gives up after a while; the other end may, too."""
        healthy = (
            self.world.talk(self.below.node, self.above.node) and not self.below.ice.depth and not self.above.ice.depth
        )
        if not healthy:
            if self.disturbed_at is None:
                self.disturbed_at = self.world.now
                self.world.after(TIMEOUT_S + self.world.random.random(), self._timed_out, self.disturbed_at)
            return
        self.disturbed_at = None
        if self.open_above != self.open_below:  # the host is back and knows nothing of this connection
            self._closed(
                False, *((self.close_above, self.above) if self.open_above else (self.close_below, self.below))
            )
        self.world.after(0.0, self._deliver)  # after what had arrived already and waits at a process

    def _deliver(self) -> None:
        messages, self.backlog = self.backlog, []
        for message in messages:
            self._arrive(message)
        self.kick()

    def _timed_out(self, since: float) -> None:
        if self.disturbed_at == since:
            self.below.ice.call(self.close_below)
            self.above.ice.call(self.close_above)

    def _closed(self, silent: bool, other_end: Any, other: Server) -> None:
        if self.open_above or self.open_below:
            if not silent and self.world.talk(self.below.node, self.above.node):
                self.world.after(self.world.latency(), other.ice.call, other_end)
            else:
                self.world.after(TIMEOUT_S + self.world.random.random(), other.ice.call, other_end)
        else:
            self.below.ledger.links.pop(self, None)

    # -- below ----------------------------------------------------------------------------------

    def _data(self, start: int, records: list[int], timeline: int, history: tuple[tuple[int, int], ...]) -> None:
        below = self.below
        if not self.open_below or below.receiver is not self:
            return
        if below.disk_full:
            self.close_below()
            return
        assert start <= len(below.wal), "TCP keeps the order"
        new = records[len(below.wal) - start :]
        if new:
            below.extend(new)
            below.ledger.flushed(self)
        if timeline != below.timeline:
            below.timeline = timeline
            below.history = history
            below.files.update(range(2, timeline + 1))
        below.kick()
        world = self.world
        self.due_above = max(self.due_above, world.now + world.latency())
        world.after(self.due_above - world.now, self._arrive, (self._ack, len(below.wal)))

    def close_below(self, *, silent: bool = False) -> None:
        """The receiver has exited."""
        if self.open_below:
            self.open_below = False
            below = self.below
            if below.receiver is self:
                below.receiver = None
                if below.state is not Run.DOWN:
                    below.try_later(0.1)
                    below.ledger.wake(below.node)
            self._closed(silent, self.close_above, self.above)


__all__ = ["NOBODYS", "Link", "connect", "stream_problem"]
