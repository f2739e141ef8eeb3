"""A container engine for tests: the one that runs here, or one of our own, and the images to try.

Nothing is assumed to be reachable: without a registry the base image is made with debootstrap, and Python packages come
from wheels/. An engine of our own has its socket, data and state in one temporary directory; `close` stops it, and puts
back what it changed in the kernel (firewall rules, forwarding).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "debian:bookworm-slim"
SUITE = "bookworm"
BUILD_S = 3600
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
EMPTY = {  # what iptables-save does not say of a table that was never used
    b"filter": b"*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n",
    b"nat": b"*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n",
}
# Predefined build arguments: they are in no layer and no history.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class NoEngine(Exception):
    """There can be none here; the message says why."""


class Engine:
    """`docker` and `docker-compose` against one engine."""

    def __init__(self) -> None:
        if shutil.which("docker") is None:
            raise NoEngine("not installed: docker (apt-get install docker.io docker-compose)")
        self.env = dict(os.environ)
        self.docker = "docker"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None
        self._firewall: bytes | None = None
        self._forwarded = ""
        if not self._answers():
            if os.geteuid() != 0 or shutil.which("dockerd") is None:
                raise NoEngine("no container engine answers, and only root can start one (apt-get install docker.io)")
            self._start_daemon()
        self.env["DOCKER_BUILDKIT"] = "1" if self._has_buildkit() else "0"

    def _answers(self) -> bool:
        asked = subprocess.run([self.docker, "info"], env=self.env, capture_output=True, timeout=30, check=False)
        return asked.returncode == 0

    def _has_buildkit(self) -> bool:
        """Before 23 the client speaks BuildKit itself, from then on through a plugin that may not be installed."""
        version = re.search(r"(\d+)\.", self.run(self.docker, "--version").stdout)
        own = version is not None and int(version[1]) < 23
        return own or self.run(self.docker, "buildx", "version", check=False).returncode == 0

    def _start_daemon(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="fpe", dir="/tmp"))
        socket = self._home / "docker.sock"
        self.env["DOCKER_HOST"] = f"unix://{socket}"
        packaged = (
            "/usr/bin/docker"  # of the same package as the daemon; another client may want a plugin to build with
        )
        self.docker = packaged if os.access(packaged, os.X_OK) else "docker"
        self._forwarded = FORWARDING.read_text()
        if shutil.which("iptables-save") is not None:
            self._firewall = subprocess.run(["iptables-save"], capture_output=True, timeout=30, check=False).stdout
        with (self._home / "log").open("wb") as log:
            options = ("--data-root", self._home / "data", "--exec-root", self._home / "exec", "-p", self._home / "pid")
            self._daemon = subprocess.Popen(
                ["dockerd", "-H", f"unix://{socket}", "--bridge", "none", *map(str, options)],
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
        """Stop an engine of our own; one that was here goes on."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(60)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait(10)
        if self._daemon is not None:
            if self._firewall is not None:
                unused = b"".join(rules for name, rules in EMPTY.items() if b"*%s\n" % name not in self._firewall)
                subprocess.run(["iptables-restore"], input=unused + self._firewall, timeout=30, check=False)
            FORWARDING.write_text(self._forwarded)
        self._daemon = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self, *argv: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program against this engine; `docker` is the client that fits it."""
        command = [self.docker if argv[0] == "docker" else argv[0], *argv[1:]]
        done = subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr[-2000:] or done.stdout[-2000:]}"
        return done

    def has(self, image: str) -> bool:
        return self.run("docker", "image", "inspect", image, check=False).returncode == 0

    # --- images ---------------------------------------------------------------------------------------------------

    def build(self, target: str, tag: str, *arguments: str) -> None:
        """Build one image of images/Dockerfile, unless it is there. FLYPG_E2E=rebuild builds it anyway."""
        if self.has(tag) and os.environ.get("FLYPG_E2E") != "rebuild":
            return
        self._base()
        self.run("make", "wheels", timeout_s=BUILD_S)
        options = ("--network", "host", "-f", "images/Dockerfile", "--target", target, "-t", tag)
        proxies = [word for name in PROXIES if name in os.environ for word in ("--build-arg", name)]
        self.run("docker", "build", *options, *proxies, *arguments, ".", timeout_s=BUILD_S)

    def _base(self) -> None:
        """The base image: here already, pulled, or made with debootstrap from this machine's package source."""
        if self.has(BASE) or self.run("docker", "pull", "-q", BASE, timeout_s=300, check=False).returncode == 0:
            return
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise NoEngine(f"{BASE} cannot be pulled, and debootstrap is not installed to make it")
        with tempfile.TemporaryDirectory(prefix="fpb", dir="/tmp") as directory:
            made = self.run(
                "debootstrap", "--variant=minbase", SUITE, directory, mirror(), timeout_s=BUILD_S, check=False
            )
            if made.returncode != 0:
                raise NoEngine(f"debootstrap could not make {BASE}: {made.stderr[-500:] or made.stdout[-500:]}")
            with subprocess.Popen(["tar", "-C", directory, "-c", "."], stdout=subprocess.PIPE) as archive:
                command = [self.docker, "import", "-", BASE]
                with open(os.devnull, "wb") as nowhere:
                    subprocess.run(command, stdin=archive.stdout, stdout=nowhere, env=self.env, check=True, timeout=600)


def mirror() -> str:
    """Where this machine gets Debian's packages from. Raises NoEngine when it gets them nowhere."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        text = place.read_text(errors="replace") if place.is_file() else ""
        found = re.search(r"^(?:deb (?:\[[^]]*\] )?|URIs: )(\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
        if found is not None:
            return found[1]
    raise NoEngine("no source of Debian's packages is named in /etc/apt, so there is nothing to make a base image from")
