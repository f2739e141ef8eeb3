"""/commands/admin/settings/*: what PostgreSQL is set to, and what the operator wishes it were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from cluster.errors import InstanceError
from cluster.model import Spec
from healthchecks.commands.journal import change_spec
from healthchecks.commands.route import Bare, Call, CommandError, Json
from healthchecks.commands.sql import on_primary
from postgres import admin_queries as admin
from postgres.config import check_parameters

NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)\s*(B|kB|MB|GB|TB|us|ms|s|min|h|d)?\Z")


async def view(call: Call) -> object:
    """The settings whose names are in the body, a JSON array; all of them without a body."""
    names = _names(call)
    found = await on_primary(call, lambda connection: admin.settings(connection, names))
    return {"settings": [admin.as_json(setting) for setting in found]}


async def view_strict(call: Call) -> object:
    """The same, but a name that does not exist is an error, as in Fly's newer image."""
    names = _names(call)
    found = await on_primary(call, lambda connection: admin.settings(connection, names))
    missing = [name for name in names or () if name not in {setting.name for setting in found}]
    if missing:
        raise CommandError(404, f"setting {', '.join(missing)} is not a valid config option")
    return {"settings": [admin.as_json(setting) for setting in found]}


async def view_none(call: Call) -> object:
    """There is no repmgr and no barman here, so there are none of their settings."""
    return {}


def _names(call: Call) -> list[str] | None:
    if not call.body.strip():
        return None
    names = call.json()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CommandError(400, "the body must be a JSON array of names")
    if any("\0" in name or not name.isprintable() for name in names):
        raise CommandError(400, "a name of a setting is one printable word")
    return names


async def update(call: Call) -> object:
    """A patch of the cluster's specification; of stolon's keys, pgParameters is understood. null takes a wish back."""
    patch = call.json()
    if not isinstance(patch, dict):
        raise CommandError(400, "the body must be a JSON object")
    other = sorted(set(patch) - {"pgParameters"})
    if other:
        raise CommandError(400, f"{', '.join(other)}: only pgParameters can be changed here; see flypg spec")
    await _apply(call, _wishes(patch.get("pgParameters", {})))
    return "Ok"


async def update_postgres(call: Call) -> object:
    wishes = _wishes(call.json())
    waiting = await _apply(call, wishes)
    if not waiting:
        return {"message": "Updated", "restart_required": False}
    names = ", ".join(waiting)
    return {"message": f"Updated, but settings {names} need a restart to apply", "restart_required": True}


async def update_barman(call: Call) -> object:
    call.json()
    raise CommandError(409, "barman is not enabled")


async def apply(call: Call) -> object:
    """Nothing to do: every node applies what etcd says by itself."""
    return Bare(None)


def _wishes(value: object) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise CommandError(400, "settings must be a JSON object of names and values")
    wishes: dict[str, str | None] = {}
    for name, given in value.items():
        if given is not None and not isinstance(given, str | int | float | bool):
            raise CommandError(400, f"the value of {name} must be a string")
        wishes[name] = None if given is None else ("on" if given else "off") if isinstance(given, bool) else str(given)
    try:
        check_parameters([(name, wish or "") for name, wish in wishes.items() if name != "wal_level" or wish], ())
    except InstanceError as error:
        raise CommandError(400, str(error)) from error
    return wishes


async def _apply(call: Call, wishes: Mapping[str, str | None]) -> list[str]:
    """Store the wishes. Returns those that need a restart. Raises CommandError, 404 for an unknown one."""
    if not wishes:
        return []
    unknown = await on_primary(call, lambda connection: admin.unknown_settings(connection, wishes))
    if unknown:
        raise CommandError(404, f"setting {', '.join(unknown)} is not a valid config option")
    found = await on_primary(call, lambda connection: admin.settings(connection, list(wishes)))
    for setting in found:
        _check_value(setting, wishes[setting.name])

    def changed(spec: Spec) -> Spec:
        merged = {**dict(spec.parameters), **wishes}
        return replace(spec, parameters=tuple(sorted((n, v) for n, v in merged.items() if v is not None)))

    told = ", ".join(f"{name} to {wish}" if wish is not None else f"{name} back" for name, wish in wishes.items())
    await change_spec(call, changed, f"set {told}")
    return [setting.name for setting in found if setting.context == "postmaster"]


def _check_value(setting: admin.Setting, wish: str | None) -> None:
    """Catch what is plainly wrong; PostgreSQL itself tries the rest before it is applied."""
    if wish is None:
        return
    if setting.context == "internal":
        raise CommandError(400, f"{setting.name} cannot be changed")
    if setting.vartype == "bool" and wish.lower() not in ("on", "off", "true", "false", "yes", "no", "1", "0"):
        raise CommandError(400, f"{setting.name} must be on or off")
    if setting.vartype == "enum" and setting.enumvals and wish.lower() not in (v.lower() for v in setting.enumvals):
        raise CommandError(400, f"{setting.name} must be one of {', '.join(setting.enumvals)}")
    if setting.vartype in ("integer", "real"):
        _check_number(setting, wish)


def _check_number(setting: admin.Setting, wish: str) -> None:
    match = NUMBER.match(wish.strip())
    if match is None:
        raise CommandError(400, f"{setting.name} must be a number")
    number, in_own_unit = float(match[1]), not match[2]
    low, high = setting.min_val, setting.max_val
    if in_own_unit and low is not None and high is not None and not float(low) <= number <= float(high):
        raise CommandError(400, f"{setting.name} must be between {low} and {high}")


async def process_event(call: Call) -> object:
    """What repmgr would tell; there is none here. Checked, and left alone."""
    asked: Json = call.fields(name=str, nodeID=int, success=bool, details=str)
    if not asked["name"]:
        raise CommandError(400, "name is needed")
    return True
