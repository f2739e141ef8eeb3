"""Our own home, for libpq and for what we start."""

from __future__ import annotations

import os
import pwd


def settle_home() -> None:
    """Let HOME name our own home where it names one that we may not enter.

    `setpriv --reuid`, `su -m` and their like leave root's HOME to another user, and libpq, which looks into
    ~/.postgresql, then gives up every connection to another machine.
    """
    home = os.environ.get("HOME")
    if home and os.path.isabs(home) and not os.access(home, os.X_OK):
        try:
            os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            os.environ["HOME"] = "/nonexistent"
