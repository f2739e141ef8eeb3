"""/commands/admin/*: role, failover, restart, replication, read-only, and the proxy."""

from __future__ import annotations

from cluster.errors import FlypgError
from cluster.model import RequestKind
from healthchecks.commands.journal import ask, note
from healthchecks.commands.route import Bare, Call, CommandError
from healthchecks.commands.sql import on_primary
from healthchecks.role import Role, claim, gather
from postgres import admin_queries as admin

FAILOVER_WAIT_S = 30.0
RESTART_WAIT_S = 60.0


async def role(call: Call) -> object:
    found = claim(gather(call.provider), stale_after_s=10.0)
    if found.role is Role.NONE:
        raise CommandError(500, found.why)
    return str(found.role)


async def trigger_failover(call: Call) -> object:
    """A switchover to the best standby: the primary stops cleanly first, and no commit is lost."""
    outcome = await ask(call, RequestKind.SWITCHOVER, None, FAILOVER_WAIT_S)
    if not outcome:
        raise CommandError(500, "timed out verifying failover")
    if not outcome.startswith("done"):
        raise CommandError(500, f"no eligible keepers available to accommodate failover: {outcome}")
    return Bare({"message": "failover completed successfully"})


async def restart(call: Call) -> object:
    outcome = await ask(call, RequestKind.RESTART, call.provider.node(), RESTART_WAIT_S)
    if not outcome:
        raise CommandError(500, f"PostgreSQL has not restarted within {RESTART_WAIT_S:g} s; the request stands")
    if not outcome.startswith("done"):
        raise CommandError(500, outcome)
    return "Restart completed successfully"


async def replication_stats(call: Call) -> object:
    """Capital keys and null for nobody, as Fly prints them. The primary is asked, whichever node answers."""
    rows = await on_primary(call, admin.standbys)
    return [{"Name": f"stolon_{name.rpartition('_t')[0] or name}", "Diff": diff} for name, diff in rows] or None


async def dbuid(call: Call) -> object:
    """The name behind `stolon_` in replicationstats: the node's."""
    return call.provider.node()


async def read_only_on(call: Call) -> object:
    return await _set_read_only(call, on=True)


async def read_only_off(call: Call) -> object:
    return await _set_read_only(call, on=False)


async def _set_read_only(call: Call, *, on: bool) -> object:
    """On every database but postgres; sessions through this node's proxy end, so that it counts for them at once."""
    await on_primary(call, lambda connection: admin.set_read_only(connection, on=on))
    await note(call, f"switched the databases to {'read-only' if on else 'read/write'}")
    await _restart_proxy(call)
    return True


async def read_only_state(call: Call) -> object:
    return await on_primary(call, admin.read_only)


async def restart_proxy(call: Call) -> object:
    await _restart_proxy(call)
    await note(call, f"restarted the proxy of {call.provider.node()}")
    return True


async def _restart_proxy(call: Call) -> None:
    try:
        await call.provider.restart_routing()
    except FlypgError as error:
        raise CommandError(500, f"the proxy could not be restarted: {error}") from error
