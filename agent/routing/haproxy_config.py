"""What HAProxy is started with: the settings of this node's routing and the configuration file made of them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from agent.routing.slots import REFUSING
from agent.routing.target import Address
from cluster.model import Ports

PRIMARY_SLOTS = ("p1", "p2")
READER_SLOTS = tuple(f"r{i}" for i in range(1, 17))
LONGEST_HOLD_S = 120.0

TEMPLATE = """\
# Written by flypg at every start; changes made here are lost.
global
    maxconn {maxconn}
    nbthread {threads}
    stats socket {socket} mode 600 level admin
    stats timeout 10s
    hard-stop-after 1s
    set-dumpable

defaults
    mode tcp
    timeout connect {connect_ms}ms
    timeout client 24d
    timeout server 24d
    timeout queue {hold_ms}ms
    retries {retries}
    option redispatch 1
    option dontlognull
    option clitcpka
    option srvtcpka
    clitcpka-idle 60s
    clitcpka-intvl 10s
    clitcpka-cnt 6
    srvtcpka-idle 60s
    srvtcpka-intvl 10s
    srvtcpka-cnt 6

frontend primary
{proxy_binds}
    default_backend pg

frontend standbys
{read_binds}
    default_backend read

backend pg
{primary_servers}
    server hold {refusing} backup

backend read
    balance leastconn
{read_servers}
    server hold {refusing} backup

frontend stats
    mode http
    maxconn 32
    timeout client 30s
    timeout http-request 5s
    bind {stats_bind}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    stats enable
    stats uri /
    stats refresh 10s
"""


@dataclass(frozen=True, slots=True)
class HAProxySettings:
    """How HAProxy runs on this node."""

    run_dir: Path  # holds haproxy.cfg, haproxy.pid and haproxy.sock; the servers' user can write to it
    log_dir: Path
    ports: Ports
    listen: tuple[str, ...] = ("0.0.0.0", "::")  # addresses of 5432 and 5434
    stats_listen: str = "127.0.0.1"
    user: str = "postgres"  # when the agent is root
    program: str = "haproxy"
    maxconn: int = 4000  # client connections of both ports together
    connect_timeout_s: float = 0.25  # above the slowest round trip to a node; held clients are tried again as often


def door(settings: HAProxySettings) -> Address:
    """Where programs of this node find port 5432."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    host = next((h for h in settings.listen if h in loopback), settings.listen[0])
    return Address(loopback.get(host, host), settings.ports.proxy)


def ipv6_works() -> bool:
    """Can this machine listen on IPv6?"""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def render(settings: HAProxySettings, *, ipv6: bool, open_files: int, cpus: int) -> str:
    """The configuration file. `open_files` caps `maxconn`: a session takes two, without them HAProxy does not start."""
    hosts = [h for h in settings.listen if ipv6 or ":" not in h]
    binds = [f"    bind {_bind(host, settings.ports.proxy)}" for host in hosts]
    read_binds = [f"    bind {_bind(host, settings.ports.read)}" for host in hosts]
    connect_ms = max(1, round(settings.connect_timeout_s * 1000))
    return TEMPLATE.format(
        maxconn=max(100, min(settings.maxconn, (open_files - 200) // 2)),
        threads=1 if cpus <= 1 else 2,
        socket=settings.run_dir / "haproxy.sock",
        connect_ms=connect_ms,
        hold_ms=round(LONGEST_HOLD_S * 1000),
        retries=max(3, round(LONGEST_HOLD_S * 1000 / min(connect_ms, 1000))),
        proxy_binds="\n".join(binds),
        read_binds="\n".join(read_binds),
        refusing=REFUSING,
        primary_servers=_servers(PRIMARY_SLOTS),
        read_servers=_servers(READER_SLOTS),
        stats_bind=_bind(settings.stats_listen, settings.ports.stats),
    )


def _servers(slots: tuple[str, ...]) -> str:
    return "\n".join(f"    server {slot} {REFUSING} disabled" for slot in slots)


def _bind(host: str, port: int) -> str:
    return f"ipv6@[{host}]:{port} v6only" if ":" in host else f"ipv4@{host}:{port}"
