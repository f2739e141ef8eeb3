"""A schedule means what it would mean in a crontab."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from backups.config import read_config
from backups.cron import read_cron
from backups.schedule import next_after
from cluster.errors import SettingsError

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC).timestamp()  # a Friday
STORIES = (
    ("every day", "0 3 * * *", "Sat 2026-11-28 03:00"),
    ("0 is Sunday", "0 3 * * 0", "Sun 2026-11-29 03:00"),
    ("7 as well", "0 3 * * 7", "Sun 2026-11-29 03:00"),
    ("and by name", "0 3 * * SUN", "Sun 2026-11-29 03:00"),
    ("1 is Monday", "0 3 * * 1", "Mon 2026-11-30 03:00"),
    ("working days", "0 3 * * 1-5", "Mon 2026-11-30 03:00"),
    ("working days by name", "0 3 * * mon-fri", "Mon 2026-11-30 03:00"),
    ("to the end of the week", "0 3 * * 6-7", "Sat 2026-11-28 03:00"),
    ("every other day of the week, from Sunday on", "0 3 * * */2", "Sat 2026-11-28 03:00"),
    ("the first of a month", "30 4 1 * *", "Tue 2026-12-01 04:30"),
    ("a month by name", "0 0 1 feb *", "Mon 2027-02-01 00:00"),
    ("some hours", "15 */6 * * *", "Fri 2026-11-27 12:15"),
    ("a range with steps", "10-30/10 12 * * *", "Fri 2026-11-27 12:10"),
    ("from a number on, in steps", "5/20 12 * * *", "Fri 2026-11-27 12:05"),
    ("either kind of day is enough", "0 3 13 * fri", "Fri 2026-12-04 03:00"),
    ("the other kind, too", "0 3 29 * fri", "Sun 2026-11-29 03:00"),
    ("a leap day", "0 3 29 2 *", "Tue 2028-02-29 03:00"),
)
WRONG = (
    ("61 3 * * *", "minute '61' is not from 0 to 59"),
    ("0 24 * * *", "hour '24'"),
    ("0 3 0 * *", "day of the month '0'"),
    ("0 3 * 13 *", "month '13' is not from 1 to 12 or jan"),
    ("0 3 * * 8", "day of the week '8'"),
    ("0 3 * * monday", "day of the week 'monday'"),
    ("0 3 * *", "five fields"),
    ("@daily", "five fields"),
    ("*/0 3 * * *", "is nothing"),
    ("0 5-3 * * *", "is nothing"),
    ("0 3,, * * *", "not understood"),
    ("0 3 31 2 *", "never comes"),
    ("0 3 31 4,6,9 *", "never comes"),
)


@pytest.mark.parametrize(("line", "wanted"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_next(line: str, wanted: str) -> None:
    at = next_after(line, NOW)
    assert at is not None
    assert datetime.fromtimestamp(at, UTC).strftime("%a %F %H:%M") == wanted


@pytest.mark.parametrize(("line", "why"), WRONG, ids=[w[0] for w in WRONG])
def test_what_is_no_schedule_is_refused_at_the_start(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_cron(line)
    with pytest.raises(SettingsError, match=f"FLYPG_SNAPSHOT_SCHEDULE.*{why}"):
        read_config({"FLYPG_SNAPSHOT_SCHEDULE": line}, Path("/data"), 1000)
