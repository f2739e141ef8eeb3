"""A container engine for tests: the one that runs here, or one of our own, and the images to try.

Nothing is assumed to be reachable: without a registry the base image is made with debootstrap, and Python packages come
from wheels/. What was started here is stopped by `close`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "debian:bookworm-slim"
BUILD_S = 3600


class NoEngine(Exception):
    """There can be none here; the message says why."""


class Engine:
    """`docker` and `docker-compose` against one engine."""

    def __init__(self) -> None:
        missing = [name for name in ("docker",) if shutil.which(name) is None]
        if missing:
            raise NoEngine(f"not installed: {', '.join(missing)} (apt-get install docker.io docker-compose)")
        self.env = os.environ | {"DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0")}
        self._daemon: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None
        if self._answers():
            return
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            raise NoEngine("no container engine answers, and only root can start one")
        self._start_daemon()

    def _answers(self) -> bool:
        asked = subprocess.run(["docker", "info"], env=self.env, capture_output=True, timeout=30, check=False)
        return asked.returncode == 0

    def _start_daemon(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="fpd", dir="/tmp"))
        socket = self._home / "docker.sock"
        self.env["DOCKER_HOST"] = f"unix://{socket}"
        with (self._home / "log").open("wb") as log:
            options = ("--data-root", self._home / "data", "--exec-root", self._home / "exec", "-p", self._home / "pid")
            self._daemon = subprocess.Popen(
                ["dockerd", "-H", f"unix://{socket}", *map(str, options)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                words = (self._home / "log").read_text(errors="replace")[-500:]
                self.close()
                raise NoEngine(f"dockerd does not start here: {words}")
            time.sleep(0.2)

    def close(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(60)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait(10)
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self, *argv: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            list(argv), env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr[-2000:] or done.stdout[-2000:]}"
        return done

    def has(self, image: str) -> bool:
        return self.run("docker", "image", "inspect", image, check=False).returncode == 0

    # --- images ---------------------------------------------------------------------------------------------------

    def build(self, target: str, tag: str) -> None:
        """Build one image of images/Dockerfile, unless it is there. FLYPG_E2E=rebuild builds it anyway."""
        if self.has(tag) and os.environ.get("FLYPG_E2E") != "rebuild":
            return
        self._base()
        if not list((ROOT / "wheels").glob("*.whl")):
            self.run("make", "wheels", timeout_s=BUILD_S)
        options = ("--network", "host", "-f", "images/Dockerfile", "--target", target, "-t", tag)
        self.run("docker", "build", "-q", *options, ".", timeout_s=BUILD_S)

    def _base(self) -> None:
        """The base image: here already, pulled, or made with debootstrap from this machine's package source."""
        if self.has(BASE) or self.run("docker", "pull", "-q", BASE, timeout_s=300, check=False).returncode == 0:
            return
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise NoEngine(f"{BASE} cannot be pulled, and debootstrap is not installed to make it")
        with tempfile.TemporaryDirectory(prefix="fpb", dir="/tmp") as directory:
            self.run("debootstrap", "--variant=minbase", "bookworm", directory, timeout_s=BUILD_S)
            archive = subprocess.Popen(["tar", "-C", directory, "-c", "."], stdout=subprocess.PIPE)
            subprocess.run(["docker", "import", "-", BASE], stdin=archive.stdout, env=self.env, check=True, timeout=600)
            archive.wait(60)

    # --- compose --------------------------------------------------------------------------------------------------

    def compose(self, *argv: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        plugin = self.run("docker", "compose", "version", check=False).returncode == 0
        program = ("docker", "compose") if plugin else ("docker-compose",)
        return self.run(*program, "-p", "flypge2e", *argv, timeout_s=timeout_s, check=check)

    def container(self, service: str) -> str:
        """Its id, running or not."""
        return self.compose("ps", "-q", service).stdout.strip()
