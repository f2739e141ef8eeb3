"""The machine under PostgreSQL: disk, load and pressure, in Fly's words."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from healthchecks.config import Thresholds
from healthchecks.lines import Line, timed_out
from healthchecks.text import duration, size

PRESSURES = ("memory", "cpu", "io")
WINDOWS = ((10, "10 seconds"), (60, "60 seconds"), (300, "300 seconds"))


@dataclass(frozen=True, slots=True)
class Disk:
    total: int  # bytes
    available: int  # bytes that an ordinary user may still write
    path: str = ""  # where it is mounted, or a directory on it


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the last 10, 60 and 300 seconds in which some task, or every task, waited."""

    some: tuple[float, float, float]
    full: tuple[float, float, float] = (0.0, 0.0, 0.0)


def parse_pressure(text: str) -> Pressure:
    """Raises ValueError when `text` is not what the kernel writes."""
    found: dict[str, tuple[float, float, float]] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        try:
            found[kind] = (float(values["avg10"]), float(values["avg60"]), float(values["avg300"]))
        except KeyError as error:
            raise ValueError(f"no {error} in {line!r}") from None
    if "some" not in found:
        raise ValueError(f"no line `some` in {text!r}")
    return Pressure(found["some"], found.get("full", (0.0, 0.0, 0.0)))


def judge_disk(disk: Disk, path: str, limits: Thresholds, seconds: float | None = None) -> Line:
    free_percent = 100.0 * disk.available / disk.total if disk.total else 0.0
    text = f"{size(disk.available)} ({free_percent:.1f}%) free space on {path}"
    return Line("checkDisk", text, passed=free_percent >= limits.disk_free_fail_percent, seconds=seconds)


def judge_load(loads: tuple[float, float, float], cpus: int, limits: Thresholds, seconds: float | None = None) -> Line:
    """`loads`: over 1, 5 and 15 minutes. They are printed the other way round, as Fly does."""
    one, five, fifteen = loads
    words = ("1 minute load average is very high", "5 minute load average is high", "15 minute load average is high")
    for load, limit, text in zip(loads, limits.load_fail_per_cpu, words, strict=True):
        if limit and load / cpus > limit:
            return Line("checkLoad", f"{text}: {load:.2f}", passed=False, seconds=seconds)
    return Line("checkLoad", f"load averages: {fifteen:.2f} {five:.2f} {one:.2f}", seconds=seconds)


def judge_pressure(name: str, pressure: Pressure, limits: Thresholds, seconds: float | None = None) -> Line:
    for (window, words), percent in zip(WINDOWS, pressure.some, strict=True):
        if limits.pressure_fail_percent and percent > limits.pressure_fail_percent:
            waited = duration(window * percent / 100)
            return Line(name, f"system spent {waited} of the last {words} waiting on {name}", False, seconds=seconds)
    full = pressure.full[1]
    if name == "memory" and limits.memory_full_fail_percent and full > limits.memory_full_fail_percent:
        text = f"every task spent {duration(60 * full / 100)} of the last 60 seconds waiting on {name}"
        return Line(name, text, passed=False, seconds=seconds)
    text = f"system spent {duration(60 * pressure.some[1] / 100)} of the last 60s waiting on {name}"
    warning = bool(limits.pressure_warn_percent) and pressure.some[1] > limits.pressure_warn_percent
    return Line(name, text, warning=warning, seconds=seconds)


def read_disk(*paths: str) -> Disk:
    """The fullest of the volumes of these directories. One that is not there yet is left out, but for the first."""
    disks: list[Disk] = []
    for path in paths:
        try:
            stats = os.statvfs(path)
        except FileNotFoundError:
            if not disks:
                raise
        else:
            disks.append(Disk(stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize, path))
    return min(disks, key=lambda disk: disk.available / max(1, disk.total))


class Machine:
    """Looks at this machine. A disk that does not answer holds one thread, never more."""

    def __init__(self, paths: tuple[str, ...], limits: Thresholds, proc: Path = Path("/proc")) -> None:
        """`paths`: of the data, and of what may lie on another volume."""
        self._paths = paths
        self._limits = limits
        self._proc = proc
        self._disk: asyncio.Task[Disk] | None = None

    async def disk(self, timeout_s: float) -> Disk:
        """Raises OSError, or TimeoutError when the disk does not answer."""
        if self._disk is None:
            self._disk = asyncio.create_task(asyncio.to_thread(read_disk, *self._paths))
        pending = self._disk
        done, _ = await asyncio.wait({pending}, timeout=timeout_s)
        if not done:
            raise TimeoutError
        self._disk = None
        return pending.result()

    async def check_disk(self, timeout_s: float) -> Line:
        begun = time.perf_counter()
        try:
            disk = await self.disk(timeout_s)
        except TimeoutError:
            return timed_out("checkDisk", time.perf_counter() - begun)
        except OSError as error:
            return Line("checkDisk", str(error), passed=False, seconds=time.perf_counter() - begun)
        shown = disk.path.rstrip("/") + "/"
        return judge_disk(disk, shown, self._limits, time.perf_counter() - begun)

    def check_load(self) -> Line:
        begun = time.perf_counter()
        return judge_load(os.getloadavg(), os.cpu_count() or 1, self._limits, time.perf_counter() - begun)

    def check_pressure(self, name: str) -> Line:
        """Where the kernel has no pressure files the line says so, and passes."""
        begun = time.perf_counter()
        try:
            pressure = parse_pressure((self._proc / "pressure" / name).read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            return Line(name, f"not measured: {error}", seconds=time.perf_counter() - begun)
        return judge_pressure(name, pressure, self._limits, time.perf_counter() - begun)

    async def lines(self, timeout_s: float) -> tuple[Line, ...]:
        """Fly's five lines, in Fly's order."""
        disk = await self.check_disk(timeout_s)
        return (disk, self.check_load(), *(self.check_pressure(name) for name in PRESSURES))
