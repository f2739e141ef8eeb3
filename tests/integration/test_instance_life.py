"""One PostgreSQL from initdb to its end: users, gate, settings, death, hanging, and an agent that takes over."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psycopg
import pytest

from cluster.clock import SystemClock
from cluster.errors import InstanceError
from cluster.model import Disk, NodeId, Position, Promise, Rule, lone_rule
from postgres.config import NOBODY_NAMES, settings_fingerprint
from postgres.disk import StateFile
from postgres.instance import Data, Run
from postgres.process import processes_of
from postgres.server import LocalInstance
from tests.support.postgres import PASSWORDS, Servers, binaries_missing, servers, up

pytestmark = pytest.mark.skipif(binaries_missing() != "", reason=binaries_missing())


def test_founding_users_and_gate() -> None:
    async def story(made: Servers) -> None:
        node = made.add()
        instance = node.instance
        assert (await instance.observe()).data is Data.ABSENT
        with pytest.raises(InstanceError, match="no complete data directory"):
            await instance.start_standby(None)
        await instance.begin_initdb()
        with pytest.raises(InstanceError, match="still running"):
            await instance.begin_initdb()
        state = await node.until(lambda s: s.job is not None and not s.job.running)
        assert state.job is not None and state.job.error == ""
        assert state.data is Data.PRESENT and state.run is Run.DOWN and not state.died
        assert state.control is not None and state.control.clean_primary

        await instance.start_primary(lone_rule(1, node.name))
        await instance.start_primary(lone_rule(1, node.name))  # done already
        state = await node.until(up)
        assert state.in_recovery is False and not state.gate_open and state.names == ""
        assert state.position is not None and state.position.timeline == 1
        await instance.ensure_roles()
        await instance.ensure_roles()

        assert node.sql("SELECT current_user", user="flypgadmin") == [("flypgadmin",)]
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba.conf entry"):
            node.sql("SELECT 1", user="postgres")
        await instance.set_gate(open=True)
        assert (await instance.observe()).gate_open
        with node.connect(user="postgres") as client:
            stored = client.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'repluser'").fetchone()
            assert stored is not None and str(stored[0]).startswith("SCRAM-SHA-256$")
            checksums = client.execute("SHOW data_checksums").fetchone()
            assert checksums == ("on",)
            await instance.set_gate(open=False)
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")
        logs = "".join(p.read_text() for p in node.config.log.iterdir())
        assert not any(p in logs for p in (PASSWORDS.superuser, PASSWORDS.operator, PASSWORDS.replicator))

        await instance.stop(fast=True)
        state = await node.until(lambda s: s.run is Run.DOWN)
        assert not state.died and state.control is not None and state.control.clean_primary

    run(story)


LEFT = "SELECT (1 << 24) - (pg_walfile_name_offset(pg_current_wal_flush_lsn())).file_offset"


@pytest.mark.parametrize(
    ("archive_command", "filled"), [("true", True), ("", False)], ids=["archiving", "not archiving"]
)
def test_a_stop_that_is_prepared_has_little_of_the_wal_file_left_to_fill(archive_command: str, filled: bool) -> None:
    async def story(made: Servers) -> None:
        node = await made.primary(archive_command=archive_command)
        node.sql("SELECT pg_switch_wal()")
        for _ in range(2):  # the second time there is nothing to do
            await node.instance.prepare_stop()
            ((left,),) = node.sql(LEFT)
            assert (left < 1 << 20) is filled

    run(story)


def test_a_stop_is_prepared_though_no_standby_confirms_any_more() -> None:
    """Its keeper has to take them out of the rule, and does nothing else meanwhile."""

    async def story(made: Servers) -> None:
        node = await made.primary(archive_command="true")
        node.sql("SELECT pg_switch_wal()")
        with pytest.raises(InstanceError, match="no standby confirmed"):
            await node.instance.apply_rule(Rule(1, node.name, frozenset({NodeId("gone")}), 1))
        async with asyncio.timeout(20):
            await node.instance.prepare_stop()
        assert (await node.instance.observe()).run is Run.UP

    run(story)


def test_a_standby_start_never_ends_as_a_primary() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        await node.instance.stop(fast=False)
        await node.until(lambda s: s.run is Run.DOWN)
        await node.instance.start_standby(None)  # of a crashed primary
        state = await node.until(up)
        assert state.in_recovery and state.names == NOBODY_NAMES and state.upstream is None
        position = await node.instance.detach()
        assert position.timeline == 1
        assert (await node.instance.observe()).in_recovery

    run(story)


def test_death_is_seen_at_once_and_leaves_no_zombie() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        woken = asyncio.Event()
        node.instance.on_change = woken.set
        pid = node.instance.postmaster_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(woken.wait(), 30)
        state = await node.instance.observe()
        assert state.run is Run.DOWN and state.died and not state.gate_open
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)  # reaped
        await node.instance.start_primary(lone_rule(1, node.name))  # right after kill -9
        state = await node.until(up)
        assert not state.died and not state.gate_open

    run(story)


def test_a_frozen_postmaster_hangs_and_can_be_stopped() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        pid = node.instance.postmaster_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        state = await node.until(lambda s: s.run is Run.HUNG)
        assert state.in_recovery is False, "the open connection still answers"
        os.kill(pid, signal.SIGCONT)
        await node.until(up)
        for process in processes_of(node.config.pgdata):
            os.kill(process, signal.SIGSTOP)
        state = await node.until(lambda s: s.run is Run.HUNG)
        assert state.position is None
        await node.instance.stop(fast=False)
        state = await node.until(lambda s: s.run is Run.DOWN)
        assert not state.died
        assert processes_of(node.config.pgdata) == []

    run(story)


def test_a_restarted_agent_adopts_the_server() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        pid = node.instance.postmaster_pid
        await node.instance.close()
        other = made.adopt(node)
        woken = asyncio.Event()
        other.on_change = woken.set
        state = await other.observe()
        assert state.run is Run.UP and state.gate_open and state.names == ""
        assert other.postmaster_pid == pid is not None
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(woken.wait(), 30)
        assert (await other.observe()).died

    run(story)


def test_settings() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        wanted = (("max_connections", "77"), ("work_mem", "5MB"))
        await node.instance.set_parameters(wanted, ())
        assert node.sql("SHOW work_mem") == [("5MB",)]
        state = await node.until(lambda s: s.pending_restart != ())
        assert state.pending_restart == ("max_connections",)
        assert state.settings_generation == settings_fingerprint(wanted, ())
        with pytest.raises(InstanceError, match="work_mem"):
            await node.instance.set_parameters((("work_mem", "five"),), ())
        with pytest.raises(InstanceError, match="belongs to flypg"):
            await node.instance.set_parameters((("fsync", "off"),), ())
        with pytest.raises(InstanceError, match="nonsense"):
            await node.instance.set_parameters((), ("host all all nonsense/99 scram-sha-256",))
        assert (await node.instance.observe()).settings_generation == settings_fingerprint(wanted, ())
        node.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await node.instance.stop(fast=True)
        await node.instance.start_primary(lone_rule(1, node.name))
        state = await node.until(up)
        assert node.sql("SHOW max_connections") == [("77",)] and state.pending_restart == ()
        assert node.sql("SHOW synchronous_standby_names") == [("",)], "ALTER SYSTEM does not win"

    run(story)


def test_a_server_that_cannot_start_says_why() -> None:
    async def story(made: Servers) -> None:
        node = await made.primary()
        twin = made.add(port=node.config.port)
        await twin.instance.begin_initdb()
        await twin.until(lambda s: s.job is not None and not s.job.running)
        with pytest.raises(InstanceError, match=r"did not start: could not"):
            await twin.instance.start_primary(lone_rule(1, twin.name))

    run(story)


def test_state_file(tmp_path: Path) -> None:
    async def story() -> None:
        file = StateFile(tmp_path / "state.json")
        assert await file.read() == Disk()
        disk = Disk(7, Promise(NodeId("n1"), 7, Position(3, 0x16_B374D848)), Position(2, 5), True, 6)
        await file.write(disk)
        assert await StateFile(tmp_path / "state.json").read() == disk
        assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600

    asyncio.run(story())


def run(story: object) -> None:
    async def inside() -> None:
        async with servers() as made:
            await story(made)  # type: ignore[operator]

    asyncio.run(inside())


def test_binaries_that_are_missing_are_named(tmp_path: Path) -> None:
    async def story(made: Servers) -> None:
        node = made.add(binaries=tmp_path)
        await node.instance.begin_initdb()
        state = await node.until(lambda s: s.job is not None and not s.job.running)
        assert state.job is not None and str(tmp_path / "initdb") in state.job.error
        assert isinstance(LocalInstance(node.config, SystemClock(), node.name), LocalInstance)

    run(story)
