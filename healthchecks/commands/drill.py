"""/commands/drill/*: what a drill against a live cluster asks of a node. Off unless FLYPG_DRILLS is on."""

from __future__ import annotations

from cluster.drill_orders import BadOrder, read_order
from healthchecks.commands.journal import change_spec, note
from healthchecks.commands.route import Call, CommandError
from healthchecks.drills import DrillRefused, Drills

FIELDS = {"nonce", "text", "tag"}


def _drills(call: Call) -> Drills:
    found = call.provider.drills()
    if found is None:
        raise CommandError(
            403, f"drills are switched off on {call.provider.node()}: set FLYPG_DRILLS=on and restart its agent"
        )
    return found


async def _signed(call: Call, drills: Drills, what: str) -> tuple[str, str]:
    """The nonce and the text of an order by somebody who may give it. Raises CommandError."""
    found = call.json()
    if not isinstance(found, dict) or set(found) != FIELDS or not all(isinstance(v, str) for v in found.values()):
        raise CommandError(400, f"the body must be an object with the strings {', '.join(sorted(FIELDS))}")
    try:
        await drills.check(what, found["nonce"], found["text"], found["tag"], call.who)
    except DrillRefused as error:
        raise CommandError(error.status, str(error)) from None
    return found["nonce"], found["text"]


async def challenge(call: Call) -> object:
    nonce = _drills(call).challenge()
    return {"nonce": nonce, "node": call.provider.node(), "cluster": call.provider.cluster()}


async def offer(call: Call) -> object:
    drills = _drills(call)
    await _signed(call, drills, "offer")
    try:
        return {"faults": dict(await drills.offer())}
    except DrillRefused as error:
        raise CommandError(error.status, str(error)) from None


async def begin(call: Call) -> object:
    """The history is written first: what it cannot tell of does not happen."""
    drills = _drills(call)
    nonce, text = await _signed(call, drills, "begin")
    try:
        order = read_order(text)
    except BadOrder as error:
        raise CommandError(400, str(error)) from None
    name = f"drill: {order.fault} on {call.provider.node()}"
    await change_spec(call, lambda spec: spec, f"{name} for at most {order.for_s:g} s, asked by {order.asked_by}")

    async def ended(why: str) -> None:
        await note(call, f"{name}: undone, {why}")

    try:
        return {"port": await drills.begin(order, nonce, ended)}
    except DrillRefused as error:
        await note(call, f"{name}: refused, {error}")
        raise CommandError(error.status, str(error)) from None
