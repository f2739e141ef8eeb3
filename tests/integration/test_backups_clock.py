"""The wall clock jumps under a running scheduler, in a process whose clock is not the machine's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, os, time
from backups import schedule

schedule.LOOK_S = 0.3
ticks = 0

async def tick():
    global ticks
    ticks += 1

async def main():
    ticker = schedule.Ticker()
    ticker.every(0.3, tick)
    running = asyncio.create_task(ticker.run())
    for jump in ("-86400s", "+86400s"):
        while ticks == 0:
            await asyncio.sleep(0.05)
        before = time.time()
        with open(os.environ["FAKETIME_TIMESTAMP_FILE"], "w") as file:
            file.write(jump)
        await asyncio.sleep(1.0)
        assert abs(time.time() - before) > 3600, "the clock has jumped"
        found = ticks
        deadline = time.monotonic() + 60
        while ticks < found + 3:
            assert time.monotonic() < deadline, f"no tick after {jump}"
            await asyncio.sleep(0.05)
    running.cancel()

asyncio.run(main())
print("ticks on")
"""


@pytest.mark.skipif(LIBRARY is None, reason="there is no libfaketime on this machine (apt-get install faketime)")
def test_a_clock_that_jumps_does_not_stop_the_ticker(tmp_path: Path) -> None:
    """Back a day, it used to sleep for a day; forward two, it goes on as well."""
    stamp = tmp_path / "clock"
    stamp.write_text("+0s")
    fake = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1"}
    fake |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | fake, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and "ticks on" in done.stdout, done.stderr
