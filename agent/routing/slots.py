"""The servers of one HAProxy backend as slots that lead to addresses, and the commands that change them. Pure.

A slot is free, open (takes new connections) or shut (takes none, sessions go on until they are cut). A switch never
re-addresses a slot that has sessions, so cutting those of the old server cannot catch one of the new.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from agent.routing.target import Address

REFUSING = Address("127.0.0.1", 1)  # nothing listens there: connections are held by being refused again and again
IN_MAINTENANCE = 0x01  # bit of srv_admin_state


@dataclass(slots=True)
class Slots:
    """What we believe HAProxy to do with the slots of `backend`. Changed by every method that returns commands."""

    backend: str
    names: tuple[str, ...]
    address: dict[str, Address] = field(default_factory=dict)  # of the slots that are not free
    open: set[str] = field(default_factory=set)

    def opened(self) -> list[Address]:
        """Where new connections go now."""
        return [self.address[name] for name in self.names if name in self.open]

    def lead(self, wanted: Iterable[Address], keep: Collection[Address]) -> list[str]:
        """Send new connections to `wanted` only. One for which no slot can be had is left out."""
        wanted = list(dict.fromkeys(wanted))
        commands = [
            command for n in self.names if n in self.open and self.address[n] not in wanted for command in self._shut(n)
        ]
        for address in wanted:
            name = self._slot_for(address, {*keep, *wanted})
            if name is None or name in self.open:
                continue
            if self.address.get(name, address) != address:
                commands += self.cut([name])
            if name not in self.address:
                commands.append(self._set(name, address))
            self.address[name] = address
            self.open.add(name)
            commands.append(f"set server {self.backend}/{name} state ready")
        return commands

    def to_cut(self, keep: Collection[Address]) -> list[str]:
        """Slots whose sessions may not go on."""
        return [n for n, address in self.address.items() if n not in self.open and address not in keep]

    def cut(self, names: Collection[str]) -> list[str]:
        """End the sessions of shut slots and free them."""
        commands = []
        for name in names:
            commands += [f"shutdown sessions server {self.backend}/{name}", self._set(name, REFUSING)]
            self.address.pop(name, None)
        return commands

    def learn(self, state: str) -> None:
        """Believe what `show servers state` prints (columns: see HAProxy's management guide)."""
        self.address, self.open = {}, set()
        for line in state.splitlines():
            fields = line.split()
            if len(fields) < 19 or fields[1] != self.backend or fields[3] not in self.names:
                continue
            address = Address(fields[4], int(fields[18]))
            if address != REFUSING:
                self.address[fields[3]] = address
                if not int(fields[6]) & IN_MAINTENANCE:
                    self.open.add(fields[3])

    def _shut(self, name: str) -> list[str]:
        self.open.discard(name)
        return [f"set server {self.backend}/{name} state maint"]

    def _slot_for(self, address: Address, needed: Collection[Address]) -> str | None:
        """The slot that leads there already, else a free one, else one whose sessions would be cut anyway."""
        for name, taken in self.address.items():
            if taken == address:
                return name
        for name in self.names:
            if name not in self.address:
                return name
        for name, taken in self.address.items():
            if name not in self.open and taken not in needed:
                return name
        return None

    def _set(self, name: str, address: Address) -> str:
        return f"set server {self.backend}/{name} addr {address.host} port {address.port}"
