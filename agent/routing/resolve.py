"""Names of nodes to numeric addresses: HAProxy takes nothing else, and a switch must not wait for DNS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from agent.routing.target import Address
from cluster.errors import CommandFailed

FRESH_S = 30.0  # an answer is used without asking again for so long
ANSWER_WITHIN_S = 1.0


class Resolver:
    """Remembers what it was told, so that DNS may fail while the cluster fails over."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    async def numeric(self, address: Address) -> Address:
        """The same address with a numeric host. Raises CommandFailed when the name was never resolved and cannot be."""
        try:
            ipaddress.ip_address(address.host)
            return address
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        host, asked_at = self._known.get(address.host, ("", 0.0))
        if host and loop.time() - asked_at < FRESH_S:
            return Address(host, address.port)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            host = str(found[0][4][0])
        except (OSError, TimeoutError) as error:
            if not host:
                raise CommandFailed(f"the address of {address.host} is not known: {error}") from error
        self._known[address.host] = (host, loop.time())
        return Address(host, address.port)
