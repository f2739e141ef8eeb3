"""The real PostgreSQL of a node behind the Instance interface: each method here is one step of a keeper.

The hard parts live beside it: `detach`, `rules`, `promotion`, `jobs`, `observer`. What this file guarantees: every
start writes the whole configuration anew with the gate closed and a list that nobody satisfies (or the rule), every
start but `start_primary` has standby.signal, and whether an absence was asked for is on disk before it happens.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from cluster.clock import Clock
from cluster.errors import FlypgError, InstanceError, PostgresUnavailable
from cluster.model import NodeId, Position, Rule, Upstream
from postgres import adoption, command, promotion, queries, rules, server_log, settings, slots
from postgres import detach as detaching
from postgres.config import OPERATOR, REPLICATOR, SUPERUSER, InstanceConfig
from postgres.connection import Session, Spare, bounded, connect_remote, helper
from postgres.controldata import ControlData
from postgres.files import DiskThread, holds_files, is_fresh_copy, read_or_empty
from postgres.instance import Control, Data, InstanceState, Job, JobKind, Run
from postgres.jobs import Jobs, beside
from postgres.launch import MARK_S, Launcher, launched
from postgres.observer import Observer, Seen
from postgres.parts import Parts, change, reload
from postgres.process import Postmaster, reap_orphans
from postgres.seeding import Seeder
from postgres.server_files import ServerFiles

PRUNE_EVERY_S = 60.0
CHECKPOINT_S = 120.0
FILL_S = 2.0  # the keeper does nothing else meanwhile, not even take a standby that is gone out of the rule
WAL_LEFT_BYTES = 1 << 19  # in the current WAL file before a planned stop: for what clients write until then
ROLES_S = 10.0
HAND_OVER_S = 5.0


class LocalInstance:
    """One PostgreSQL on this machine. `on_change` is called when something happened that is worth a look."""

    def __init__(self, config: InstanceConfig, clock: Clock, me: NodeId) -> None:
        self.on_change: Callable[[], None] = _nothing
        owner = command.account(config.user)
        files = ServerFiles(config, me, owner)
        postmaster = Postmaster(config.pgdata, self._changed)
        self._parts = Parts(config, me, owner, clock, files, DiskThread(), postmaster, Session(config), Spare())
        self._observer = Observer(self._parts)
        self._launcher = Launcher(self._parts)
        self._jobs = Jobs(self._parts, self._changed)
        self._pruned_at = clock.boottime()
        self._detached: tuple[int | None, Position] | None = (
            None  # the postmaster that follows nobody, and where it stands
        )
        self._served = False  # was it a primary when it was last seen?

    @property
    def config(self) -> InstanceConfig:
        return self._parts.config

    @property
    def postmaster_pid(self) -> int | None:
        """Process id of the postmaster, which also leads its process group and session; None when there is none."""
        return self._parts.postmaster.find()

    def _changed(self) -> None:
        self.on_change()

    async def close(self) -> None:
        """Let go of the server, which runs on."""
        await self._jobs.close()
        await self._observer.close()
        await self._parts.session.drop()
        await self._parts.spare.drop()
        self._parts.postmaster.close()
        self._parts.disk.close()

    # Looking.

    def _data(self) -> Data:
        pgdata = self.config.pgdata
        if beside(pgdata, "rewinding").exists():
            return Data.INCOMPLETE if not self._jobs.running else Data.PRESENT
        if (pgdata / "global" / "pg_control").exists() and (pgdata / "PG_VERSION").exists():
            return Data.PRESENT
        leftovers = (pgdata, beside(pgdata, "copying"), beside(pgdata, "initdb"))
        return Data.INCOMPLETE if any(holds_files(path) for path in leftovers) else Data.ABSENT

    async def observe(self) -> InstanceState:
        files = self._parts.files
        seen = await self._observer.see()
        data = self._data()
        down = seen.run is Run.DOWN
        died = down and data is Data.PRESENT and files.mark == "started"
        news, self._served = died and self._served, seen.look is not None and not seen.look.in_recovery
        if not down:
            await self._prune_logs()
        elif not news:
            reap_orphans()
        state = InstanceState(
            data=data,
            run=seen.run,
            died=died,
            job=self._jobs.job,
            upstream=files.dynamic.upstream,
            gate_open=files.gate_open and not down,
            names=files.dynamic.names,
            suspect=seen.suspect,
            fault=seen.fault or (self._observer.why_it_died(self._launcher.logged) if died and not news else ""),
            data_generation=files.generation,
            settings_generation=files.fingerprint,
        )
        if news:  # that a primary has died is told first, what its files say is looked at after
            self._changed()
        elif data is Data.PRESENT:
            fresh = down and is_fresh_copy(self.config.pgdata)
            state = replace(state, control=await self._control(down), fresh_copy=fresh)
        return _with_look(state, seen)

    async def _prune_logs(self) -> None:
        now = self._parts.clock.boottime()
        if now - self._pruned_at >= PRUNE_EVERY_S:
            self._pruned_at = now
            with contextlib.suppress(InstanceError, OSError):
                await self._parts.disk.do(self._parts.files.prune_logs, MARK_S)

    async def _control(self, down: bool) -> Control | None:
        if not down and (control := self._observer.running_control()) is not None:
            return control
        try:
            found = await self._observer.control()
        except FlypgError:
            return None  # unreadable: without it nothing is started or promised
        return found.control if found else None

    async def stream_age_s(self) -> float | None:
        """Seconds since this standby's WAL receiver last heard from its primary; None without one, or no answer."""
        try:
            async with helper(self.config, "flypg_watch") as connection:  # it is asked beside the keeper's turns
                return await bounded(connection, queries.stream_age_s(connection), 1.0)
        except FlypgError:
            return None

    # Data.

    async def begin_initdb(self) -> None:
        if self._data() is Data.PRESENT:
            return
        self._must_be_down("initdb")
        self._jobs.begin(Job(JobKind.INITDB, True), self._jobs.initdb())

    async def begin_copy(self, source: Upstream, *, seed: bool = True) -> None:
        self._must_be_down("a copy")
        self._jobs.begin(Job(JobKind.COPY, True, source=source.node), self._jobs.copy(source, seed=seed))

    def seed_with(self, seeder: Seeder) -> None:
        """Where the data of this node comes from when it is copied afresh, if it can."""
        self._jobs.seeder = seeder

    async def begin_rewind(self, source: Upstream) -> None:
        self._must_be_down("rewinding")
        found = await self._observer.control()
        if found is None:
            raise InstanceError("there is no data directory to rewind: copy it afresh")
        if not (found.checksums or found.wal_log_hints):
            raise InstanceError("pg_rewind needs data checksums or wal_log_hints: copy it afresh")
        self._jobs.begin(Job(JobKind.REWIND, True, source=source.node), self._jobs.rewind(source, found.control))

    def _must_be_down(self, what: str) -> None:
        if self._parts.postmaster.find() is not None:
            raise InstanceError(f"{what} needs PostgreSQL to be stopped first")
        if self._jobs.running:
            assert self._jobs.job is not None
            raise InstanceError(f"{self._jobs.job.kind} is still running")

    # Starting and stopping.

    async def start_standby(self, upstream: Upstream | None) -> None:
        files = self._parts.files
        if self._parts.postmaster.find() is None:
            self._must_be_down("a start")
            await self._launcher.standby(upstream, await self._startable())
        elif upstream is not None and files.dynamic.upstream != upstream:
            await self.follow(upstream)

    async def start_primary(self, rule: Rule) -> None:
        if self._parts.postmaster.find() is None:
            self._must_be_down("a start")
            await self._startable()
            if adoption.pending(self.config):
                self._adopt()
                return
            await self._launcher.primary(rule)
        elif (self.config.pgdata / "standby.signal").exists():
            raise InstanceError("it runs as a standby already: promote it")

    def _adopt(self) -> None:
        """What must happen to a directory of somebody else before its first start; that follows when it is done."""
        before = self._jobs.job
        if before is not None and before.kind is JobKind.ADOPT and before.error:
            raise InstanceError(f"the data was not taken over: {before.error}; restart the agent to try again")
        job = Job(JobKind.ADOPT, True, progress="taking over the data directory")
        self._jobs.begin(job, adoption.prepare(self._parts))

    async def _startable(self) -> ControlData:
        found = await self._observer.control()
        if found is None or self._data() is not Data.PRESENT:
            raise InstanceError("there is no complete data directory to start")
        return found

    async def stop(self, *, fast: bool) -> None:
        await self._launcher.stop(fast=fast)

    async def hand_over(self) -> Position | None:
        if self._parts.postmaster.find() is None:
            return None
        await self._launcher.begin_stop()
        return await self._observer.final_end(HAND_OVER_S)

    # Standby.

    async def follow(self, upstream: Upstream) -> None:
        self._detached = None
        await change(self._parts, replace(self._parts.files.dynamic, upstream=upstream))
        await promotion.free_replay(self._parts)

    async def detach(self) -> Position:
        self._detached = None
        position = await detaching.detach(self._parts, self._observer.replay_timeline)
        self._detached = (self._parts.postmaster.find(), position)
        return position

    async def promote(self, timeline: int, rule: Rule) -> None:
        pid, at = self._detached or (None, None)
        await promotion.promote(self._parts, timeline, rule, at if pid == self._parts.postmaster.find() else None)

    # Primary.

    async def apply_rule(self, rule: Rule) -> None:
        await rules.apply_rule(self._parts, rule)

    async def barrier(self, rule: Rule) -> None:
        await rules.barrier(self._parts, rule)

    async def checkpoint(self) -> None:
        async with helper(self.config, "flypg_checkpoint") as connection:
            await bounded(connection, queries.checkpoint(connection), CHECKPOINT_S)

    async def prepare_stop(self) -> None:
        async with helper(self.config, "flypg_checkpoint") as connection:
            await bounded(connection, queries.checkpoint(connection), CHECKPOINT_S)
            with contextlib.suppress(PostgresUnavailable):  # what is not filled now is filled while clients are held
                await bounded(connection, queries.fill_wal_file(connection, WAL_LEFT_BYTES), FILL_S)

    async def ensure_roles(self) -> None:
        """Create flypg's users, or give them the passwords of the configuration. On a primary, once after founding."""
        passwords = self.config.passwords
        async with helper(self.config, "flypg_roles") as connection:
            for name, attributes, password in (
                (SUPERUSER, "SUPERUSER LOGIN REPLICATION", passwords.superuser),
                (OPERATOR, "SUPERUSER LOGIN REPLICATION", passwords.operator),
                (REPLICATOR, "LOGIN REPLICATION", passwords.replicator),
            ):
                await bounded(connection, queries.ensure_role(connection, name, attributes, password), ROLES_S)

    # Both.

    async def set_gate(self, *, open: bool) -> None:
        files = self._parts.files
        await self._parts.disk.do(lambda: files.write_gate(gate_open=open))
        await reload(self._parts)
        if not open:
            await self._parts.session.ask(lambda c: queries.end_clients(c, OPERATOR, SUPERUSER))

    async def set_parameters(self, parameters: Iterable[tuple[str, str]], hba: Iterable[str]) -> None:
        """Write the operator's settings and reload. What needs a restart shows up as `pending_restart`.

        Raises InstanceError when PostgreSQL refuses them; the ones before stay then.
        """
        await settings.set_parameters(self._parts, parameters, hba, data=self._data() is Data.PRESENT)
        self._observer.settings_changed()

    async def apply_tls(self) -> None:
        """The certificate or who is trusted has changed: written, and read again by a server that runs. Nobody is
        disconnected. A server that does not run gets it at its start, one that is just starting when asked again."""
        await self._parts.disk.do(self._parts.files.write_tls)
        pid = self._parts.postmaster.find()
        if pid is not None and launched(read_or_empty(self.config.pgdata / "postmaster.pid"), pid):
            self._parts.postmaster.send(signal.SIGHUP)

    async def keep_slots(self, nodes: frozenset[NodeId]) -> None:
        await slots.keep(self._parts, nodes)

    async def advance_slots(self, restart_lsns: Mapping[NodeId, int]) -> None:
        """On a standby: let the slots kept for others go as far as those of the primary have gone, so that they do not
        hold WAL for ever. `restart_lsns`: restart_lsn of each node's slot on the primary."""
        await slots.advance(self._parts, restart_lsns)

    async def ask_position(self, source: Upstream) -> Position:
        connection = await connect_remote(self.config, source.host, source.port)
        try:
            return await bounded(connection, queries.position(connection), 5.0)
        finally:
            await connection.close()

    async def lacks_wal(self) -> bool:
        said = await self._parts.disk.do(lambda: server_log.since(self.config.log, self._launcher.logged))
        return server_log.REMOVED.search(said) is not None

    async def oldest_wal(self, source: Upstream) -> int:
        connection = await connect_remote(self.config, source.host, source.port)
        try:
            return await bounded(connection, queries.oldest_wal(connection), 5.0)
        finally:
            await connection.close()


def _nothing() -> None:
    """Until somebody wants to be told."""


def _with_look(state: InstanceState, seen: Seen) -> InstanceState:
    """`state` with what the server itself has answered, if it has."""
    look = seen.look
    if look is None:
        return state
    receiver = look.receiver or [None]
    return replace(
        state,
        in_recovery=look.in_recovery,
        position=seen.position,
        replayed=seen.replayed,
        receiver=look.receiver is not None,
        streaming=receiver[0] == "streaming",
        walsenders=seen.walsenders,
        pending_restart=seen.pending_restart,
        server_version=look.version,
        slots=frozenset(look.slots or ()),
        databases=look.databases,
    )
