"""flypg fly NAME: what flyctl and people run over ssh on a machine of Fly's Postgres app, answered as there.

The JSON helpers print one object as the whole of their output and end with 0 whatever happened: flyctl decodes all of
it and reads `success` and `message`. Everything but `stolonctl status` is asked of this machine's agent over loopback.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import json
import os
import shlex
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

from cluster.errors import FlypgError
from cluster.settings import load
from flypg.cli_fly import NAMES
from flypg.commands import stolon
from flypg.reply import BadInput, Exit, Refused, Reply, done

PATIENCE_S = 75.0  # the agent itself gives up before
ADMIN = "/commands/admin"


class Failed(Exception):
    """The agent refused, or could not be asked; the message is for people."""


def run(args: argparse.Namespace) -> Reply:
    """flypg fly NAME ARGUMENTS…"""
    given: list[str] = args.arguments
    if given and given[0] in ("-h", "--help"):  # people try it, and must not restart or fail over anything by that
        return done(next(f"{name} {what}" for name, what in NAMES if name == args.name))
    match args.name:
        case "connect":
            connect(given)
        case "flyadmin":
            return flyadmin(given)
        case "stolonctl":
            return stolonctl(given)
    helpers: dict[str, Callable[[], Reply]] = {
        "pg-failover": lambda: helper(lambda: bare(failover, given)),
        "pg-restart": lambda: helper(lambda: bare(restart, given)),
        "pg-role": lambda: helper(lambda: bare(role, given)),
        "pg-settings": lambda: helper(lambda: settings(given)),
        "stolonctl-run": lambda: helper(lambda: stolonctl_run(given)),
    }
    return helpers[args.name]()


def ask(method: str, path: str, body: object = None) -> object:
    """What this machine's agent answers. Raises Failed with its error."""
    settings = load()
    host = "127.0.0.1" if "*" in settings.listen else settings.listen[0]
    headers = {"Authorization": f"Bearer {settings.api_token}"} if settings.api_token else {}
    sent = None
    if body is not None:
        sent, headers["Content-Type"] = json.dumps(body), "application/json"
    connection = http.client.HTTPConnection(host, settings.ports.http, timeout=PATIENCE_S)
    try:
        connection.request(method, path, sent, headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"the agent of this machine does not answer on port {settings.ports.http}: {error}") from error
    finally:
        connection.close()
    try:
        found = json.loads(text)
    except ValueError:
        raise Failed(f"{response.status}: {text.strip()}") from None
    if response.status > 299:
        raise Failed(str(found.get("error", text)) if isinstance(found, dict) else text)
    return found.get("result", found) if isinstance(found, dict) else found


# --- helpers that answer {"success", "message", "data"} -----------------------------------------------------------


def helper(work: Callable[[], tuple[str, str]]) -> Reply:
    """Run a helper; its message and data become one line, and so does what went wrong."""
    try:
        message, data = work()
        answer: dict[str, object] = {"success": True, "message": message, "data": data}
    except (Failed, BadInput, Refused, FlypgError) as error:
        answer = {"success": False, "message": str(error), "data": ""}
    return done(json.dumps(answer, ensure_ascii=False))


def bare(work: Callable[[], tuple[str, str]], given: Sequence[str]) -> tuple[str, str]:
    """Of helpers that take no arguments. Raises BadInput when there are some."""
    if given:
        raise BadInput(f"takes no arguments, and was given {shlex.join(given)}; nothing was done")
    return work()


def failover() -> tuple[str, str]:
    ask("GET", f"{ADMIN}/failover/trigger")
    return "Failover completed successfully", ""


def restart() -> tuple[str, str]:
    return str(ask("GET", f"{ADMIN}/restart")), ""


def role() -> tuple[str, str]:
    return "Role retrieved successfully", str(ask("GET", f"{ADMIN}/role"))


def settings(given: Sequence[str]) -> tuple[str, str]:
    names = [name for name in decoded(given[0]).split(",") if name] if given else []
    return "Success", json.dumps(ask("GET", f"{ADMIN}/settings/view", names or None))


def stolonctl_run(given: Sequence[str]) -> tuple[str, str]:
    if len(given) != 1:
        raise BadInput("stolonctl-run takes one argument: those of stolonctl, in base64")
    try:
        arguments = shlex.split(decoded(given[0]))
    except ValueError as error:
        raise BadInput(f"the arguments cannot be read: {error}") from None
    reply = stolonctl(arguments)
    if not reply.ok:
        raise Failed(reply.text)
    return "Command completed successfully", reply.text


def decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise BadInput("the argument is not base64") from None


# --- stolonctl ----------------------------------------------------------------------------------------------------


def stolonctl(given: Sequence[str]) -> Reply:
    """The commands of stolonctl that make sense here."""
    try:
        match list(given):
            case ["version"]:
                return done(f"stolonctl version flypg-{metadata.version('flypg')}")
            case ["status", *options]:
                return stolon.status(as_json=stolon.wants_json(options))
            case ["spec", *_]:
                return stolon.spec()
            case ["clusterdata", "read", *_]:
                return stolon.clusterdata()
            case ["update", *options]:
                ask("POST", f"{ADMIN}/settings/update", stolon.patch_of(options))
                return done("")
            case ["failkeeper", keeper]:
                return stolon.fail_keeper(keeper)
            case ["removekeeper", keeper]:
                return stolon.remove_keeper(keeper)
            case ["promote", *_]:
                return Reply(Exit.REFUSED, "this cluster is not a standby of another one: there is nothing to promote")
    except Failed as error:
        return Reply(Exit.FAILED, str(error))
    raise BadInput(
        f"stolonctl {shlex.join(given)}: not known here; there are status, spec, update --patch JSON, clusterdata read,"
        " failkeeper, removekeeper, promote and version"
    )


# --- flyadmin -----------------------------------------------------------------------------------------------------

FLYADMIN: dict[str, tuple[str, str]] = {
    "database-list": ("GET", "/commands/databases/list"),
    "database-create": ("POST", "/commands/databases/create"),
    "database-delete": ("DELETE", "/commands/databases/delete/{name}"),
    "user-list": ("GET", "/commands/users/list"),
    "user-create": ("POST", "/commands/users/create"),
    "user-delete": ("DELETE", "/commands/users/delete/{username}"),
}
IN_PSQL = {
    "grant-access": "GRANT CONNECT ON DATABASE … TO …",
    "revoke-access": "REVOKE CONNECT ON DATABASE … FROM …",
    "grant-superuser": "ALTER ROLE … SUPERUSER",
    "revoke-superuser": "ALTER ROLE … NOSUPERUSER",
}


def flyadmin(given: Sequence[str]) -> Reply:
    """`{"result": …}`, or `{"result": false, "error": …}`; a command that is not known ends with 2."""
    name, fields = (given[0] if given else ""), {}
    if len(given) > 1:
        try:
            fields = json.loads(given[1])
        except ValueError:
            raise BadInput("flyadmin: the second argument must be JSON") from None
    try:
        if name in IN_PSQL:
            raise Failed(f"{name} is done in psql here: {IN_PSQL[name]}")
        if name not in FLYADMIN:
            raise BadInput(f"flyadmin {name}: not known; there are {', '.join([*FLYADMIN, *IN_PSQL])}")
        method, path = FLYADMIN[name]
        result = ask(method, _filled(path, fields), fields if method == "POST" else None)
        if name == "user-list" and isinstance(result, list):
            result = [{key: user[key] for key in ("username", "superuser", "databases")} for user in result]
        return done(json.dumps({"result": result}, ensure_ascii=False))
    except Failed as error:
        return done(json.dumps({"result": False, "error": str(error)}, ensure_ascii=False))


def _filled(path: str, fields: object) -> str:
    from urllib.parse import quote

    if "{" not in path:
        return path
    key = path[path.index("{") + 1 : path.index("}")]
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, str) or not value:
        raise Failed(f"{key} is needed")
    return path.replace("{" + key + "}", quote(value, safe=""))


# --- connect ------------------------------------------------------------------------------------------------------


def connect(given: Sequence[str]) -> NoReturn:
    """psql to the primary through this machine's proxy. flyctl gives the password as an argument; psql does not."""
    settings = load()
    database, user, password = [*given, *("postgres", "postgres", settings.operator_password)[len(given) :]][:3]
    host = "127.0.0.1" if "*" in settings.listen else settings.listen[0]
    environment = os.environ | {
        "PGHOST": host,
        "PGPORT": str(settings.ports.proxy),
        "PGUSER": user,
        "PGPASSWORD": password,
        "PGDATABASE": database,
    }
    try:
        os.execvpe("psql", ["psql"], environment)
    except OSError as error:
        raise BadInput(f"psql cannot be started: {error.strerror}") from None
