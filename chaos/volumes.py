"""Volumes that are made for a testbed, and what goes wrong with them: full, slow, silent. All of it needs root.

A small volume is a tmpfs. A disk is ext4 in an image of its own behind a loop device: it can be made slow (every write
of the node's processes waits its turn, by the block controller of cgroups) and silent (`fsfreeze`: whoever writes
waits, whoever reads what is in memory does not notice).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from chaos.places import Node
from chaos.processes import Process
from chaos.target import Target, TestbedError

Undo = Callable[[], None]
WRITES_PER_S = 25  # of a slow disk; a commit takes one or two
CGROUPS = Path("/sys/fs/cgroup/blkio")
PREFIX = "fpslow"


def _run(*argv: str, check: bool = True) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise TestbedError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def mount_small(directory: Path, size_mb: int) -> None:
    directory.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0711", "tmpfs", str(directory))


def mount_disk(directory: Path, size_mb: int) -> None:
    """A disk of its own for a directory."""
    directory.mkdir(exist_ok=True)
    image = directory.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_mb * 2**20)
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", str(image))
    _run("mount", "-o", "loop", str(image), str(directory))
    directory.chmod(0o711)


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, also what is frozen."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{directory}/")), reverse=True):
        _run("fsfreeze", "-u", mount, check=False)
        _run("umount", "-l", mount, check=False)


def fill(volume: Path) -> Undo:
    """Write a file until the volume has no byte left; the undo removes it."""
    if not os.path.ismount(volume):
        raise TestbedError(f"{volume} is no volume of its own: it would fill the whole machine")
    ballast = volume / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            for size in (1 << 20, 4096, 1):
                block = b"\0" * size
                while True:
                    try:
                        if file.write(block) < size:
                            break
                    except OSError:
                        break
        finally:
            file.flush()
    return lambda: ballast.unlink(missing_ok=True)


def hang_disk(target: Target, node: Node) -> Undo:
    """Every write to the node's disk waits until it is mended."""
    if not os.path.ismount(node.directory):
        raise TestbedError(f"{node.directory} is no disk of its own: it would stop the whole machine")
    _run("fsfreeze", "-f", str(node.directory))
    return lambda: _run("fsfreeze", "-u", str(node.directory), check=False)


def throttling() -> str:
    """Why disks cannot be made slow here; "" when they can."""
    if os.geteuid() != 0:
        return "slow disks need root"
    if not (CGROUPS / "blkio.throttle.write_iops_device").exists():
        return f"slow disks need the block controller of cgroups v1 at {CGROUPS}"
    return ""


def slow_disk(target: Target, node: Node) -> Undo:
    """The node's disk takes a few writes a second."""
    if not os.path.ismount(node.directory):
        raise TestbedError(f"{node.directory} is no disk of its own: it would slow the whole machine down")
    return throttle(f"{os.getpid()}{node.name}", node.directory, node.all)


def throttle(name: str, directory: Path, look: Callable[[], list[Process]]) -> Undo:
    """Let the processes that `look` finds, and what they start, write only WRITES_PER_S times to the disk of
    `directory`. They are looked for again, as one may have been started meanwhile."""
    if why := throttling():
        raise TestbedError(why)
    device = os.stat(directory).st_dev
    group = CGROUPS / f"{PREFIX}{name}"
    group.mkdir(exist_ok=True)
    (group / "blkio.throttle.write_iops_device").write_text(f"{os.major(device)}:{os.minor(device)} {WRITES_PER_S}\n")
    for _ in range(3):
        for process in look():
            _move(process.pid, group)

    def undo() -> None:
        (group / "blkio.throttle.write_iops_device").write_text(f"{os.major(device)}:{os.minor(device)} 0\n")
        for _ in range(50):
            for pid in (group / "cgroup.procs").read_text().split():
                _move(int(pid), CGROUPS)
            try:
                group.rmdir()
            except OSError:  # somebody was started meanwhile
                time.sleep(0.1)
            else:
                return

    return undo


def _move(pid: int, group: Path) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:  # it has ended
        return


def remove_leftovers() -> None:
    """Remove the cgroups of drills whose process is gone."""
    for group in CGROUPS.glob(f"{PREFIX}[0-9]*"):
        owner = group.name.removeprefix(PREFIX).partition("n")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            for pid in (group / "cgroup.procs").read_text().split():
                _move(int(pid), CGROUPS)
            try:
                group.rmdir()
            except OSError:
                continue
