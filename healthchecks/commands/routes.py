"""The table of commands, from which requests are served and the API is described."""

from __future__ import annotations

from healthchecks.commands import admin, databases, drill, settings, users
from healthchecks.commands.route import NAME, Json, Route

TEXT: Json = {"type": "string"}
YES: Json = {"type": "boolean"}
NAMES: Json = {"type": ["array", "null"], "items": TEXT}
USER: Json = {
    "type": "object",
    "required": ["username", "superuser", "repluser", "databases"],
    "properties": {"username": TEXT, "superuser": YES, "repluser": YES, "databases": NAMES},
}
DATABASE: Json = {"type": "object", "required": ["name", "users"], "properties": {"name": TEXT, "users": NAMES}}
SETTING: Json = {
    "type": "object",
    "required": ["name", "setting", "context", "vartype"],
    "properties": {
        **{
            name: TEXT for name in ("name", "setting", "context", "vartype", "min_val", "max_val", "unit", "short_desc")
        },
        "enumvals": {"type": "array", "items": TEXT},
        "pending_change": TEXT,
        "pending_restart": YES,
    },
}
SETTINGS: Json = {
    "type": "object",
    "required": ["settings"],
    "properties": {"settings": {"type": "array", "items": SETTING}},
}
STATS: Json = {
    "type": ["array", "null"],
    "items": {"type": "object", "properties": {"Name": TEXT, "Diff": {"type": ["integer", "null"]}}},
}
MESSAGE: Json = {"type": "object", "required": ["message"], "properties": {"message": TEXT}}
UPDATED: Json = {"type": "object", "properties": {"message": TEXT, "restart_required": YES}}
OBJECT: Json = {"type": "object"}
NEW_USER: Json = {
    "type": "object",
    "required": ["username", "password"],
    "properties": {
        "username": NAME,
        "password": {"type": "string", "minLength": 1},
        "superuser": YES,
        "databases": TEXT,
    },
}
SIGNED: Json = {
    "type": "object",
    "required": ["nonce", "text", "tag"],
    "properties": {"nonce": TEXT, "text": TEXT, "tag": TEXT},
    "additionalProperties": False,
}
NEW_DATABASE: Json = {"type": "object", "required": ["name"], "properties": {"name": NAME}}
WISHES: Json = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
PATCH: Json = {"type": "object", "properties": {"pgParameters": WISHES}, "additionalProperties": False}
SETTING_NAMES: Json = {"type": "array", "items": TEXT}
EVENT: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": TEXT, "nodeID": {"type": "integer"}, "success": YES, "details": TEXT},
}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


ADMIN = "/commands/admin"
ROUTES: tuple[Route, ...] = (
    Route("GET", "/commands/users/list", users.list_users, "Who may log in", _list(USER)),
    Route("GET", "/commands/users/{name}", users.find_user, "One user", USER, may_fail=(404,)),
    Route("POST", "/commands/users/create", users.create_user, "Create a user", YES, NEW_USER, may_fail=(404, 409)),
    Route(
        "DELETE",
        "/commands/users/delete/{name}",
        users.delete_user,
        "Delete a user; what it owns goes to postgres",
        YES,
        may_fail=(404, 409),
    ),
    Route("GET", "/commands/databases/list", databases.list_databases, "Every database", _list(DATABASE)),
    Route("GET", "/commands/databases/{name}", databases.find_database, "One database", DATABASE, may_fail=(404,)),
    Route(
        "POST",
        "/commands/databases/create",
        databases.create_database,
        "Create a database",
        YES,
        NEW_DATABASE,
        may_fail=(409,),
    ),
    Route(
        "DELETE",
        "/commands/databases/delete/{name}",
        databases.delete_database,
        "Delete a database and end its sessions",
        YES,
        may_fail=(404, 409),
    ),
    Route("GET", f"{ADMIN}/role", admin.role, "Role of this node: leader or replica", TEXT),
    Route(
        "GET",
        f"{ADMIN}/failover/trigger",
        admin.trigger_failover,
        "Switch over to the best standby, without losing a commit",
        MESSAGE,
        bare=True,
    ),
    Route("GET", f"{ADMIN}/restart", admin.restart, "Restart this node's PostgreSQL", TEXT),
    Route("GET", f"{ADMIN}/replicationstats", admin.replication_stats, "Who streams from the primary", STATS),
    Route("GET", f"{ADMIN}/dbuid", admin.dbuid, "This node's name in replicationstats", TEXT),
    *(
        Route(method, f"{ADMIN}/readonly/{verb}", handler, summary, YES)
        for method in ("GET", "POST")
        for verb, handler, summary in (
            ("enable", admin.read_only_on, "Make every database but postgres read-only"),
            ("disable", admin.read_only_off, "Make every database read/write"),
        )
    ),
    Route("GET", f"{ADMIN}/readonly/state", admin.read_only_state, "Is any database read-only", YES),
    *(
        Route(method, f"{ADMIN}/haproxy/restart", admin.restart_proxy, "Restart this node's proxy", YES)
        for method in ("GET", "POST")
    ),
    Route("GET", f"{ADMIN}/settings/view", settings.view, "Settings of PostgreSQL, by name", SETTINGS, SETTING_NAMES),
    Route(
        "GET",
        f"{ADMIN}/settings/view/postgres",
        settings.view_strict,
        "Settings of PostgreSQL; an unknown name is an error",
        SETTINGS,
        SETTING_NAMES,
        may_fail=(404,),
    ),
    Route("GET", f"{ADMIN}/settings/view/repmgr", settings.view_none, "Nothing: there is no repmgr", OBJECT),
    Route("GET", f"{ADMIN}/settings/view/barman", settings.view_none, "Nothing: there is no barman", OBJECT),
    Route(
        "POST",
        f"{ADMIN}/settings/update",
        settings.update,
        "Patch the cluster's specification (pgParameters)",
        TEXT,
        PATCH,
        may_fail=(404, 409),
    ),
    Route(
        "POST",
        f"{ADMIN}/settings/update/postgres",
        settings.update_postgres,
        "Set PostgreSQL parameters",
        UPDATED,
        WISHES,
        bare=True,
        may_fail=(404, 409),
    ),
    Route(
        "POST",
        f"{ADMIN}/settings/update/barman",
        settings.update_barman,
        "Refused: there is no barman",
        OBJECT,
        OBJECT,
        may_fail=(409,),
    ),
    Route("POST", f"{ADMIN}/settings/apply", settings.apply, "Nothing: nodes apply settings by themselves", None),
    Route("POST", "/commands/drill/challenge", drill.challenge, "A challenge for one order of a drill", OBJECT),
    Route("POST", "/commands/drill/offer", drill.offer, "Which faults a drill can have here", OBJECT, SIGNED),
    Route(
        "POST",
        "/commands/drill/begin",
        drill.begin,
        "Get ready to break something for a while; undone by itself when the drill dies",
        OBJECT,
        SIGNED,
        may_fail=(409,),
    ),
    Route("POST", "/commands/events/process", settings.process_event, "Taken and left alone: no repmgr", YES, EVENT),
)
