"""The Instance and NodeDisk of one node in the simulation: what the keeper sees and does, with the delays of real life.

Each method stands for the real one of postgres/: it may be cut off at any await, be late, or fail.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.errors import InstanceError, PostgresUnavailable
from cluster.model import Disk, NodeId, Position, Rule, Upstream, slot_name
from postgres.instance import Data, InstanceState, Job, JobKind, Run, Walsender
from tests.simulation.server import CHECKPOINTS, NOBODYS, Server, lsn, names_of, names_text
from tests.simulation.world import SimClock, World, sleep


class SimDisk:
    """What the keeper has on its own disk. A crash of the machine loses what was not fsynced."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.durable = Disk()
        self.cached = Disk()
        self.fsyncs = True

    async def read(self) -> Disk:
        if self.fsyncs:
            self.durable = self.cached
        return self.cached

    async def write(self, disk: Disk) -> None:
        self.cached = disk
        await sleep(0.001 + 0.003 * self.world.random.random())
        if self.fsyncs:
            self.durable = disk
        await sleep(0.0005)

    def machine_crashed(self) -> None:
        if self.world.chance(0.5):  # it may have reached the disk all the same, when it was being written
            self.cached = self.durable
        elif self.fsyncs:
            self.durable = self.cached
        else:
            self.cached = self.durable


class SimInstance:
    """One agent's hand on its node's server."""

    def __init__(self, server: Server, clock: SimClock, touched: Callable[[str], None]) -> None:
        """`touched` is told of everything that is about to be changed."""
        self.server = server
        self.world = server.world
        self.clock = clock
        self.touched = touched
        self.slow_copy = 1.0

    # -- looking --------------------------------------------------------------------------------

    async def observe(self) -> InstanceState:
        server = self.server
        await sleep(0.0005 + 0.004 * self.world.random.random())
        if server.state is Run.UP and server.ice.depth:
            await sleep(1.0)
        if server.state is not Run.UP or server.ice.depth:
            run = server.state
            if run is Run.UP or (run is Run.STARTING and server.ice.depth):
                run = Run.HUNG
            return InstanceState(
                data=server.data,
                run=run,
                died=server.died,
                control=server.control(),
                fresh_copy=server.fresh_copy,
                job=server.job,
                upstream=server.conninfo,
                gate_open=server.gate_open,
                names=names_text(server.conf),
                fault="no space left on the WAL volume" if server.disk_full else "",
                data_generation=server.data_generation,
                slots=server.slots,
                server_version=150018,
            )
        receiver = server.receiver
        fault = "no space left on the WAL volume" if server.disk_full else ""
        if server.flush_stalled_at is not None and self.world.now - server.flush_stalled_at > 5.0:
            fault = "WAL is inserted but not flushed"
        return InstanceState(
            data=server.data,
            run=Run.UP,
            control=server.control(),
            job=server.job,
            in_recovery=server.recovery,
            position=server.position,
            replayed=lsn(len(server.wal)) if server.recovery else None,
            upstream=server.conninfo,
            receiver=receiver is not None,
            streaming=receiver is not None and receiver.streaming,
            gate_open=server.gate_open,
            names=names_text(server.conf),
            walsenders=tuple(self._walsender(link) for link in server.senders),
            fault=fault,
            data_generation=server.data_generation,
            slots=server.slots,
            server_version=150018,
        )

    def _walsender(self, link) -> Walsender:  # type: ignore[no-untyped-def]
        replied = (self.world.now if link.disturbed_at is None else link.disturbed_at) - 0.05
        in_list = link.name in link.names[0] and not self.server.recovery
        return Walsender(
            name=link.name,
            state="streaming" if link.streaming else "catchup",
            sync_state="quorum" if in_list else "async",
            flushed=lsn(link.acked),
            lag_s=0.0,
            reply_seen_at=replied + self.clock.offset,
        )

    # -- jobs of minutes ------------------------------------------------------------------------

    def _begin(self, kind: JobKind, source: NodeId | None, seconds: float, done) -> None:  # type: ignore[no-untyped-def]
        server = self.server
        server.job_number += 1
        number = server.job_number
        server.job = Job(kind, running=True, source=source)

        def finish() -> None:
            if server.job_number != number or server.job is None or not server.job.running:
                return
            error = done()
            server.job = Job(kind, running=False, error=error, source=source)
            self.world.say(server.node, f"{kind} {'failed: ' + error if error else 'done'} at {server.position}")
            server.ledger.wake(server.node)
            server.ledger.happened(f"{server.node} {kind.value}")

        self.world.after(seconds, server.ice.call, finish)

    def _busy(self) -> bool:
        return self.server.job is not None and self.server.job.running

    async def begin_initdb(self) -> None:
        await sleep(0.01)
        self.touched("initdb")
        if self._busy():
            return
        server = self.server
        if server.data is Data.PRESENT:
            return
        server.data = Data.INCOMPLETE

        def done() -> str:
            server.initdb()
            return ""

        self._begin(JobKind.INITDB, None, self.world.between(0.3, 1.0), done)

    def _source(self, source: Upstream) -> Server | None:
        other = self.server.ledger.servers.get(source.host)
        if other is None or other.ice.depth or other.state is not Run.UP or other.stopping:
            return None
        return other if self.world.talk(self.server.node, other.node) else None

    async def begin_copy(self, source: Upstream, *, seed: bool = True) -> None:
        await sleep(0.01)
        self.touched("copy")
        server, other = self.server, self._source(source)
        if self._busy():
            return
        if server.state is not Run.DOWN:
            raise InstanceError("the server is running")
        if other is None:
            raise PostgresUnavailable(f"{source.node} does not answer")
        begun_run, server.data = other.run, Data.INCOMPLETE
        server.wal, server.last_checkpoint, server.min_recovery = [], 0, 0
        server.data_generation += 1
        server.files.clear()

        def done() -> str:
            if server.disk_full:
                return "no space left on device"
            if self._source(source) is not other or other.run != begun_run:
                return f"the connection to {source.node} was lost"
            server.replace(list(other.wal), other.timeline, other.history)
            server.oldest = max(other.last_checkpoint, other.oldest)
            server.system_id = other.system_id
            server.files = {other.timeline} if other.timeline > 1 else set()
            server.slots = frozenset()
            server.control_state, server.fresh_copy = "in production", True  # the control file is its source's
            server.data = Data.PRESENT
            return ""

        self._begin(JobKind.COPY, source.node, self.world.between(0.5, 3.0) * self.slow_copy, done)

    async def begin_rewind(self, source: Upstream) -> None:
        await sleep(0.01)
        self.touched("rewind")
        server, other = self.server, self._source(source)
        if self._busy():
            return
        if server.state is not Run.DOWN:
            raise InstanceError("the server is running")
        if server.data is not Data.PRESENT:
            raise InstanceError("there is no complete data directory to rewind")
        if other is None:
            raise PostgresUnavailable(f"{source.node} does not answer")
        if other.recovery:
            raise InstanceError(f"{source.node} is not a primary")

        server.data = Data.INCOMPLETE  # until it has ended well

        def done() -> str:
            if self._source(source) is not other:
                if self.world.chance(0.5):
                    server.data = Data.PRESENT  # it had not begun to write
                return f"the connection to {source.node} was lost"
            server.data = Data.PRESENT
            if server.system_id != other.system_id:
                return "source and target clusters are from different systems"
            rewind(server, other)
            return ""

        self._begin(JobKind.REWIND, source.node, self.world.between(0.2, 1.5), done)

    # -- start and stop -------------------------------------------------------------------------

    async def start_standby(self, upstream: Upstream | None) -> None:
        await sleep(0.01)
        self.touched("start_standby")
        server = self.server
        if server.state is not Run.DOWN:
            return
        if server.data is not Data.PRESENT:
            raise InstanceError("there is no complete data directory")
        if self._busy():
            raise InstanceError("the data directory is being worked on")
        if self.world.chance(0.03):
            raise InstanceError("another postmaster is using the socket")
        server.start(recovery=True, names=NOBODYS, upstream=upstream)

    async def start_primary(self, rule: Rule) -> None:
        await sleep(0.01)
        self.touched("start_primary")
        server = self.server
        if server.state is not Run.DOWN:
            return
        if server.data is not Data.PRESENT or self._busy():
            raise InstanceError("there is no complete data directory")
        if self.world.chance(0.03):
            raise InstanceError("another postmaster is using the socket")
        self.world.say(server.node, f"starts as primary, {rule}")
        server.start(recovery=False, names=names_of(rule), upstream=None, acting_term=rule.term)

    async def stop(self, *, fast: bool) -> None:
        await sleep(0.005)
        self.touched("stop")
        server = self.server
        if server.state is Run.DOWN:
            return
        self.world.say(server.node, f"stop {'fast' if fast else 'immediate'}")
        if not fast:
            server.halt(asked=True)
            return
        server.ice.call(server.stop_fast)
        for _ in range(4):
            await sleep(0.05)
            if server.state is Run.DOWN:
                return

    async def hand_over(self) -> Position | None:
        """The end is known while the standbys still receive it, as with the real one."""
        await sleep(0.005)
        self.touched("hand_over")
        server = self.server
        if server.state is Run.DOWN or server.recovery:
            return None
        self.world.say(server.node, "hands over")
        server.ice.call(server.stop_fast)
        for _ in range(10):
            await sleep(0.01)
            if server.state is Run.DOWN:
                control = server.control()
                return control.stopped_at if control is not None and control.clean_primary else None
            if server.stopping and not server.disk_full and not server.ice.depth:
                return server.position
        return None

    # -- standby --------------------------------------------------------------------------------

    def _require_up(self) -> None:
        if self.server.state is not Run.UP:
            raise PostgresUnavailable("the server is not running")

    async def _answer(self) -> None:
        await sleep(0.002)
        if self.server.ice.depth:
            await sleep(1.0)
            raise PostgresUnavailable("the server does not answer")
        self._require_up()

    async def follow(self, upstream: Upstream) -> None:
        await self._answer()
        self.touched("follow")
        server = self.server
        if not server.recovery:
            raise InstanceError("it is a primary")
        server.conninfo = upstream
        server.reattach()
        await sleep(0.003)
        self._terminate_receiver(keep=upstream)
        await sleep(0.003)

    def _terminate_receiver(self, keep: Upstream | None) -> None:
        receiver = self.server.receiver
        if receiver is not None and receiver.upstream != keep:
            self.world.after(0.003, self.server.ice.call, receiver.close_below)

    async def detach(self) -> Position:
        await self._answer()
        self.touched("detach")
        server = self.server
        if not server.recovery:
            raise InstanceError("it is a primary")
        server.conninfo = None
        await sleep(0.004)
        server.ice.call(server.reattach)
        self._terminate_receiver(keep=None)
        for _ in range(2):
            await sleep(0.008)
        await self._answer()
        if server.receiver is not None or server.conninfo is not None:
            raise InstanceError("the WAL receiver is still there")
        return server.position

    async def ask_position(self, source: Upstream) -> Position:
        await sleep(self.world.latency() + 0.003)
        other = self._source(source)
        if other is None:
            raise PostgresUnavailable(f"{source.node} does not answer")
        position = other.position
        await sleep(self.world.latency())
        return position

    async def lacks_wal(self) -> bool:
        await sleep(0.01)
        return "already been removed" in self.server.stream_problem

    async def oldest_wal(self, source: Upstream) -> int:
        await sleep(self.world.latency() + 0.003)
        other = self._source(source)
        if other is None:
            raise PostgresUnavailable(f"{source.node} does not answer")
        return lsn(other.oldest)

    # -- primary --------------------------------------------------------------------------------

    async def promote(self, timeline: int, rule: Rule) -> None:
        await self._answer()
        self.touched("promote")
        server = self.server
        if not server.recovery or server.promoting:
            return
        server.set_names(names_of(rule))
        server.files.update(range(2, timeline))
        await sleep(0.004)
        if server.state is Run.UP and server.recovery:
            server.ice.call(server.promote, rule.term)

    async def apply_rule(self, rule: Rule) -> None:
        await self._answer()
        self.touched("apply_rule")
        server = self.server
        run = server.run
        wanted = names_of(rule)
        alone = not server.flag and wanted[1]  # from nothing to something: see a commit wait for nobody first
        mixed = wanted[1] != server.conf[1] or wanted[1] > 1  # an old and a new voter must not add up
        if alone or (mixed and wanted[1] and wanted != server.conf):
            server.set_names(NOBODYS)
            await self._until_demonstrable(NOBODYS, run)
        if server.conf != wanted:
            server.set_names(wanted)
        await self._until_demonstrable(wanted, run)

    async def _until_demonstrable(self, names, run: int) -> None:  # type: ignore[no-untyped-def]
        for _ in range(20):
            await sleep(0.03)
            if self.server.run != run or self.server.ice.depth:
                raise PostgresUnavailable("the server does not answer")
            if self.server.demonstrably(names):
                return
        raise InstanceError("not every walsender runs the new rule yet")

    async def barrier(self, rule: Rule) -> None:
        await self._answer()
        self.touched("barrier")
        server = self.server
        run = server.run
        returned: list[int] = []
        count = server.insert("barrier", returned.append)
        if not count:
            raise InstanceError("the barrier could not be written")
        names, wanted = names_of(rule)
        for _ in range(25):
            await sleep(0.004 if len(returned) == 0 else 0.02)
            if server.run != run or server.ice.depth:
                raise PostgresUnavailable("the server does not answer")
            if not returned:
                await sleep(0.03)
                continue
            if sum(1 for link in server.senders if link.name in names and link.acked >= count) >= wanted:
                server.barrier_at = count
                return
        raise InstanceError("the barrier was not passed")

    async def checkpoint(self) -> None:
        await self._answer()
        self.touched("checkpoint")
        await sleep(0.03)
        self.server.checkpoint()

    async def prepare_stop(self) -> None:
        await self.checkpoint()

    async def set_gate(self, *, open: bool) -> None:
        await sleep(0.003)
        if open:
            await self._answer()
        self.touched("open_gate" if open else "close_gate")
        self.server.gate_open = open

    async def ensure_roles(self) -> None:
        await self._answer()
        self.touched("ensure_roles")
        await sleep(0.01)

    async def keep_slots(self, nodes: frozenset[NodeId]) -> None:
        await self._answer()
        self.touched("keep_slots")
        self.server.slots = frozenset(slot_name(node) for node in nodes)


def common_length(target: Server, source: Server) -> int:
    """Where pg_rewind finds that the two histories part: by timelines only."""
    mine = [*target.history, (target.timeline, len(target.wal))]
    theirs = [*source.history, (source.timeline, len(source.wal))]
    common = 0
    for (a, end_a), (b, end_b) in zip(mine, theirs, strict=False):
        if a != b:
            break
        common = min(end_a, end_b)
        if end_a != end_b:
            break
    return common


def rewind(target: Server, source: Server) -> None:
    """What pg_rewind does, and what it wrongly believes to be nothing to do."""
    if source.timeline_at(source.last_checkpoint) == target.timeline:
        return  # it looks at the control file: the timelines seem to be the same
    common = common_length(target, source)
    if common == len(target.wal):
        return
    kinds = target.ledger.kinds
    keep = next((i + 1 for i in range(common - 1, -1, -1) if kinds[target.wal[i]] in CHECKPOINTS), 0)
    history = tuple((timeline, end) for timeline, end in source.history if end < keep)
    target.replace(target.wal[:keep], source.timeline_at(keep - 1) if keep else source.timeline, history)
    target.files |= source.files
    target.control_state = "in archive recovery"
    target.min_recovery, target.min_timeline = len(source.wal), source.timeline


__all__ = ["SimDisk", "SimInstance", "common_length", "rewind"]
