"""A model of one PostgreSQL server: its WAL, timelines, checkpoints, sync waits. Links between servers: replication.py.

The WAL is a list of record ids, each unique in a run, so "has this history" is exact list comparison. Streaming itself
only compares timelines and lengths, as PostgreSQL does: two branches that share a timeline mix without any error.
A record counts as written when it is flushed; what was not flushed never happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.model import NOBODY, NodeId, Position, Rule, Upstream, stamped
from postgres.instance import Control, Data, Job, Run
from tests.simulation.world import Ice, World

if TYPE_CHECKING:
    from tests.simulation.replication import Link

BASE = 0x2000000
RECORD = 120  # bytes of every record, shutdown checkpoints included

Names = tuple[frozenset[str], int]  # what synchronous_standby_names says: these, and how many of them
EMPTY: Names = (frozenset(), 0)
NOBODYS: Names = (frozenset((NOBODY,)), 1)

CHECKPOINTS = ("checkpoint", "shutdown")


def lsn(count: int) -> int:
    return BASE + count * RECORD


def count_of(position: int) -> int:
    return (position - BASE) // RECORD


def names_of(rule: Rule) -> Names:
    return frozenset(stamped(voter, rule.term) for voter in rule.voters), rule.k


def names_text(names: Names) -> str:
    return f"ANY {names[1]} ({', '.join(sorted(names[0]))})" if names[1] else ""


class Ledger:
    """Every WAL record of a run, and who is told when something of consequence happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kinds: list[str] = []
        self.servers: dict[str, Server] = {}
        self.links: dict[Link, None] = {}  # in the order of their birth: one seed, one run
        self.acknowledged: Callable[[Server, int, int, str], None] = lambda server, count, record, kind: None
        self.promoted: Callable[[Server], None] = lambda server: None
        self.flushed: Callable[[Link], None] = lambda link: None
        self.wake: Callable[[NodeId], None] = lambda node: None
        self.happened: Callable[[str], None] = lambda what: None
        self.systems = 0
        self.misrouted: dict[tuple[str, str], str] = {}  # (who asks, for which host) -> who answers

    def add(self, kind: str) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def disturbed(self) -> None:
        """The network, a machine or a process changed: every link looks whether it still works."""
        for link in list(self.links):
            link.look()


class Server:
    """One data directory and the server that may run on it."""

    def __init__(self, world: World, ledger: Ledger, node: NodeId) -> None:
        self.world = world
        self.ledger = ledger
        self.node = node
        self.ice = Ice(world)
        ledger.servers[node] = self
        # on disk
        self.data = Data.ABSENT
        self.system_id = ""
        self.wal: list[int] = []
        self.timeline = 1
        self.history: tuple[tuple[int, int], ...] = ()  # (timeline, records at which it was left)
        self.files: set[int] = set()  # timeline history files
        self.last_checkpoint = 0  # index of its record
        self.oldest = 0  # records before this one were removed: nobody can stream them from here
        self.min_recovery = 0  # records it must reach before it is consistent; 0: it is
        self.min_timeline = 0  # on this timeline
        self.control_state = "shut down"
        self.recovers = False  # this start was one after a crash
        self.fresh_copy = False
        self.conninfo: Upstream | None = None
        self.conf: Names = NOBODYS
        self.slots: frozenset[str] = frozenset()
        self.disk_full = False
        self.data_generation = 0
        self.ever_had: set[int] = set()  # in all its lives
        # of the running server
        self.run = 0  # number of this run; scheduled events of an earlier one are void
        self.state = Run.DOWN
        self.died = False
        self.recovery = True
        self.gate_open = False
        self.stuck = False  # the startup process is in a recovery conflict: it does not look at its configuration
        self.flush_stalled_at: float | None = None
        self.stopping = False
        self.promoting = False
        self.signal_stopped = False
        self.receiver: Link | None = None
        self.trying = False
        self.stream_problem = ""
        self.senders: list[Link] = []
        self.flag = True  # what makes backends wait at all; kept up to date by the checkpointer
        self.released = 0
        self.waiters: list[tuple[int, int, str, Callable[[int], None] | None]] = []
        self.barrier_at = 0  # records up to which a barrier of this run proved everything replicated
        self.acting_term = 0  # term in which it was last told to be primary
        self.job: Job | None = None
        self.job_number = 0

    # -- what is on disk ------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return Position(self.timeline, lsn(len(self.wal)))

    def timeline_at(self, index: int) -> int:
        for timeline, end in self.history:
            if index < end:
                return timeline
        return self.timeline

    def control(self) -> Control | None:
        if self.data is not Data.PRESENT:
            return None
        return Control(
            system_id=self.system_id,
            state=self.control_state,
            timeline=self.timeline_at(self.last_checkpoint),
            checkpoint=lsn(self.last_checkpoint),
            min_recovery=Position(self.min_timeline, lsn(self.min_recovery)) if self.min_recovery else None,
        )

    def extend(self, records: list[int]) -> None:
        kinds = self.ledger.kinds
        at = len(self.wal)
        self.wal += records
        self.ever_had.update(records)
        for index in range(len(self.wal) - 1, at - 1, -1):
            if kinds[self.wal[index]] in CHECKPOINTS:
                self.last_checkpoint = index
                break

    def replace(self, wal: list[int], timeline: int, history: tuple[tuple[int, int], ...]) -> None:
        self.wal = []
        self.last_checkpoint = 0
        self.extend(wal)
        self.timeline = timeline
        self.history = history
        self.oldest = self.min_recovery = 0
        self.fresh_copy = False
        self.data_generation += 1

    def initdb(self) -> None:
        self.data = Data.PRESENT
        self.ledger.systems += 1
        self.system_id = f"70000000000000000{self.ledger.systems:02}"
        self.replace([self.ledger.add("shutdown")], 1, ())
        self.files.clear()
        self.control_state = "shut down"

    # -- start and stop -------------------------------------------------------------------------

    def start(self, *, recovery: bool, names: Names, upstream: Upstream | None, acting_term: int = 0) -> None:
        assert self.state is Run.DOWN, "started twice"
        world = self.world
        self.run += 1
        self.state = Run.STARTING
        self.died = self.stopping = self.promoting = self.stuck = self.trying = False
        self.gate_open = False
        self.recovery = recovery
        self.conninfo = upstream
        self.conf = names
        self.flag = bool(names[1])
        self.released = self.barrier_at = 0
        self.acting_term = acting_term
        while self.files and max(self.files) > self.timeline:  # stubs of a promotion that never was
            self.files.discard(max(self.files))
        self.recovers = self.control_state != "shut down"
        self.control_state = "in archive recovery" if recovery else "in production"
        self.fresh_copy = False
        slow = 1.5 if world.chance(0.1) else 0.15
        world.after(world.between(0.02, slow), self.ice.call, self._up, self.run)
        if recovery:
            self.try_later(0.02)

    def _up(self, run: int) -> None:
        if run != self.run or self.state is not Run.STARTING:
            return
        if self.recovery and self._refuses_to_leave() and self.world.chance(0.5):
            self.halt(asked=False)
            return
        if self.recovery and len(self.wal) < self.min_recovery:
            self.world.after(0.1, self.ice.call, self._up, run)
            return
        self.min_recovery = 0
        self.state = Run.UP
        self.world.say(self.node, f"up as {'standby' if self.recovery else 'PRIMARY'} at {self.position}")
        if not self.recovery:
            self.ledger.promoted(self)
            if self.recovers:  # crash recovery ends with a checkpoint: the control file shows the timeline
                self.checkpoint()
        self.ledger.wake(self.node)

    def _refuses_to_leave(self) -> bool:
        """Was recovery beyond the fork of the timeline that it is to follow now? Where that one's history file is here
        already, PostgreSQL says "requested timeline does not contain minimum recovery point" at each start."""
        upstream = self.ledger.servers.get(self.conninfo.node) if self.conninfo is not None else None
        if upstream is None or not self.min_recovery or upstream.timeline <= self.min_timeline:
            return False
        left = dict(upstream.history).get(self.min_timeline)
        return left is None or self.min_recovery > left

    def halt(self, *, asked: bool, silent: bool = False, state: str = "") -> None:
        """The server ends at once. `silent`: the machine went with it, nobody is told."""
        if self.state is Run.DOWN:
            return
        if self.recovery and len(self.wal) > self.min_recovery:  # a page that was written shows how far replay was
            self.min_recovery, self.min_timeline = len(self.wal), self.timeline
        self.run += 1
        self.state = Run.DOWN
        self.died = not asked
        if state:
            self.control_state = state
        self.waiters.clear()
        self.gate_open = self.stuck = self.stopping = self.promoting = self.trying = False
        self.flush_stalled_at = None
        self.ice.melt()
        self.signal_continue()  # a stopped process dies all the same
        self.world.say(self.node, f"PostgreSQL ended {'as asked' if asked else 'by itself'} at {self.position}")
        if self.receiver is not None:
            self.receiver.close_below(silent=silent)
        for link in list(self.senders):
            link.close_above(silent=silent)
        if not silent:
            self.ledger.wake(self.node)

    def signal_stop(self) -> None:
        """SIGSTOP to all of it."""
        if not self.signal_stopped and self.state is not Run.DOWN:
            self.signal_stopped = True
            self.ice.freeze()

    def signal_continue(self) -> None:
        if self.signal_stopped:
            self.signal_stopped = False
            self.ice.thaw()

    def stop_fast(self) -> None:
        """Sessions end without an answer, then everything is shipped to the connected standbys, then it ends."""
        if self.stopping or self.state is Run.DOWN:
            return
        if self.state is Run.STARTING:
            self.halt(asked=True)
            return
        self.stopping = True
        self.waiters.clear()
        if not self.recovery and not self.disk_full:
            self.extend([self.ledger.add("shutdown")])
            self.kick()
        self.world.after(self.world.between(0.02, 0.1), self.ice.call, self._stopped, self.run)

    def _stopped(self, run: int) -> None:
        if run != self.run:
            return
        if not self.recovery and any(link.acked < len(self.wal) for link in self.senders):
            self.world.after(0.02, self.ice.call, self._stopped, run)  # as PostgreSQL does, until its sender times out
            return
        clean = not self.disk_full
        self.halt(asked=True, state=("shut down in recovery" if self.recovery else "shut down") if clean else "")

    # -- as primary -----------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self.state is Run.UP and not self.recovery and not self.stopping

    def insert(self, kind: str, acknowledged: Callable[[int], None] | None = None, *, waits: bool = True) -> int:
        """Write and flush a record; `acknowledged` is told when its commit returns. The records there are now, or 0."""
        if not self.writable or self.flush_stalled_at is not None:
            return 0
        if self.disk_full:
            self.world.say(self.node, "PANIC: no space left on device")
            self.halt(asked=False)
            return 0
        record = self.ledger.add(kind)
        self.extend([record])
        count = len(self.wal)
        self.kick()
        if waits:
            if not self.flag or count <= self.released:
                self._acknowledge(count, record, kind, acknowledged)
            else:
                self.waiters.append((count, record, kind, acknowledged))
        return count

    def _acknowledge(self, count: int, record: int, kind: str, acknowledged: Callable[[int], None] | None) -> None:
        self.ledger.acknowledged(self, count, record, kind)
        if acknowledged is not None:
            acknowledged(count)

    def release(self, link: Link) -> None:
        """A walsender has had a reply: let go who waited for it, by the configuration that this walsender has read."""
        if self.recovery or not self.waiters or not link.counted:
            return
        flushed = sorted((other.acked for other in self.senders if other.counted), reverse=True)
        wanted = link.names[1]
        if len(flushed) >= wanted:
            self.released = max(self.released, flushed[wanted - 1])
            self._let_go(self.released)

    def _let_go(self, upto: int) -> None:
        going = [waiter for waiter in self.waiters if waiter[0] <= upto]
        if going:
            self.waiters = [waiter for waiter in self.waiters if waiter[0] > upto]
            for waiter in going:
                self._acknowledge(*waiter)

    def set_names(self, names: Names) -> None:
        """Write the configuration and reload: every walsender, and the checkpointer, comes to it in its own time."""
        world = self.world
        self.conf = names
        run = self.run
        for link in self.senders:
            slow = 1.0 if world.chance(0.05) else 0.02
            world.after(world.between(0.0005, slow), self.ice.call, link.adopt, run)
        slow = 2.0 if world.chance(0.15) else 0.02
        world.after(world.between(0.0005, slow), self.ice.call, self._adopt_flag, run)

    def _adopt_flag(self, run: int) -> None:
        if run != self.run:
            return
        self.flag = bool(self.conf[1])
        if not self.flag and not self.recovery:
            self._let_go(len(self.wal))  # emptying the list lets everybody go, as success

    def demonstrably(self, names: Names) -> bool:
        """Does every walsender, and every backend, go by `names`?"""
        return self.conf == names and self.flag == bool(names[1]) and all(link.names == names for link in self.senders)

    def checkpoint(self, *, scheduled: int = 0) -> None:
        if self.writable and (not scheduled or scheduled == self.run):
            self.insert("checkpoint", waits=False)

    def kick(self) -> None:
        for link in self.senders:
            link.kick()

    # -- as standby -----------------------------------------------------------------------------

    def promote(self, term: int) -> None:
        self.promoting = True
        self.acting_term = term
        slow = 2.0 if self.world.chance(0.05) else 0.1
        self.world.after(self.world.between(0.01, slow), self.ice.call, self._promoted, self.run)

    def _promoted(self, run: int) -> None:
        if run != self.run or not self.recovery or self.state is not Run.UP:
            return
        if self.receiver is not None:
            self.receiver.close_below()
        newest = self.timeline
        while newest + 1 in self.files:
            newest += 1
        self.history = (*self.history, (self.timeline, len(self.wal)))
        self.timeline = newest + 1
        self.files.add(self.timeline)
        self.recovery = self.promoting = self.stuck = False
        self.conninfo = None
        self.control_state = "in production"
        self.released = 0
        self.world.say(self.node, f"PROMOTED at {self.position}")
        self.ledger.promoted(self)
        self.insert("promotion", waits=False)
        self.world.after(self.world.between(0.2, 3.0), self.ice.call, self._scheduled_checkpoint, run)
        self.ledger.wake(self.node)

    def _scheduled_checkpoint(self, run: int) -> None:
        self.checkpoint(scheduled=run)

    def try_later(self, delay_s: float) -> None:
        """Let the startup process look for WAL: it starts a receiver when it is told of an upstream."""
        if not self.trying:
            self.trying = True
            self.world.after(delay_s, self.ice.call, self._try, self.run)

    def _try(self, run: int) -> None:
        from tests.simulation.replication import connect

        if run != self.run:
            return
        self.trying = False
        if not self.recovery or self.receiver is not None or self.conninfo is None or self.promoting:
            return
        if self.stuck:
            self.try_later(0.2)
            return
        problem = connect(self)
        if problem:
            if problem != self.stream_problem:
                self.world.say(self.node, f"cannot stream from {self.conninfo.node}: {problem}")
            self.stream_problem = problem
            self.try_later(0.2)

    def reattach(self) -> None:
        """The configuration was reloaded: the startup process ends another upstream's receiver, unless it is stuck."""
        if self.receiver is not None and self.receiver.upstream != self.conninfo and not self.stuck:
            self.receiver.close_below()
        if self.conninfo is not None:
            self.try_later(0.005)

    def is_forked_from(self, other: Server) -> bool:
        """Does it have a record that `other` does not have?"""
        mine, theirs = self.wal, other.wal
        if len(mine) > len(theirs):
            return True
        return bool(mine) and (mine[-1] != theirs[len(mine) - 1] or mine != theirs[: len(mine)])
