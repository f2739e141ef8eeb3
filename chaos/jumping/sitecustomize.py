"""Read by every Python of a node whose clock jumps: libfaketime breaks the call behind `time.sleep`."""

import select
import time


def _sleep(seconds: float, /) -> None:
    select.poll().poll(max(0.0, seconds) * 1000)


time.sleep = _sleep  # type: ignore[assignment]
