"""The operator's certificate for clients: checked, and put where PostgreSQL and PgBouncer may read it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from agent.routing.program import Owner, write_owned
from cluster.errors import SettingsError
from postgres.config import Tls

CERTIFICATE, KEY = "FLYPG_TLS_CERT_FILE", "FLYPG_TLS_KEY_FILE"


def install(values: Mapping[str, str], conf: Path, owner: Owner) -> Tls | None:
    """Copies of the certificate and its key in `conf`, readable by the servers' user only. None: none was given.

    Raises SettingsError when one of the two is missing, cannot be read, or does not fit the other."""
    given = {key: values.get(key, "") for key in (CERTIFICATE, KEY)}
    if not any(given.values()):
        return None
    texts = {}
    for key, file in given.items():
        if not file:
            raise SettingsError(key, file, f"is needed with {CERTIFICATE if key == KEY else KEY}")
        try:
            texts[key] = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(key, file, f"cannot be read: {error}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(given[CERTIFICATE], given[KEY], password="")
    except ssl.SSLError as error:
        raise SettingsError(KEY, given[KEY], f"is not the key of {given[CERTIFICATE]}: {error.reason}") from error
    installed = Tls(conf / "server.crt", conf / "server.key")
    write_owned(installed.certificate, texts[CERTIFICATE], owner)
    write_owned(installed.key, texts[KEY], owner)
    return installed
