"""A live node's agent, as a drill speaks to it: ask what can be broken, break it, renew, undo.

The password is never sent: orders are signed (cluster/drill_orders.py). What is broken stays so only while `Held`
renews it, once a second over a connection of its own; when this process dies, the node sees it close and mends all.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chaos.target import TestbedError
from cluster.drill_orders import Order, order_tag, session_key, tag, write_order

ASK_S = 45.0  # a node may have to write to the history first, while etcd is slow
CONNECT_S = 5.0
ANSWER_S = 30.0
RENEW_S = 1.0


class Refused(TestbedError):
    """A node does not do what it was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One node. `key`: of the cluster's drills; `token`: what its commands ask for, "" for nothing."""

    name: str
    host: str
    port: int
    key: bytes
    token: str
    asked_by: str

    def offer(self) -> dict[str, str]:
        """Every fault, and why it cannot be had there; "" when it can. Raises Refused."""
        nonce = self._challenge()
        found = self._signed("offer", nonce, "").get("faults")
        if not isinstance(found, dict):
            raise Refused(f"{self.name} answered something else than its faults")
        return {str(name): str(why) for name, why in found.items()}

    def begin(self, fault: str, for_s: float) -> Held:
        """Break it, for so long at most. Raises Refused; nothing is broken then."""
        nonce = self._challenge()
        found = self._signed("begin", nonce, write_order(Order(fault, for_s, self.asked_by)))
        return Held(self, fault, int(found["port"]), session_key(self.key, nonce))

    def _challenge(self) -> str:
        found = self._post("challenge", {})
        if found.get("node") != self.name:
            raise Refused(f"{self.host}:{self.port} is {found.get('node')}, not {self.name}")
        return str(found["nonce"])

    def _signed(self, what: str, nonce: str, text: str) -> dict[str, Any]:
        signed = order_tag(self.key, what, self.name, nonce, text)
        return self._post(what, {"nonce": nonce, "text": text, "tag": signed})

    def _post(self, what: str, body: Mapping[str, object]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ASK_S)
        try:
            connection.request("POST", f"/commands/drill/{what}", json.dumps(body), headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"the agent of {self.name} at {self.host}:{self.port} does not answer: {error}") from None
        finally:
            connection.close()
        if answer.status == 404:
            raise Refused(f"the agent of {self.name} is older than drills against a cluster")
        if answer.status != 200:
            raise Refused(f"{self.name}: {found.get('error', answer.status)}")
        return dict(found["result"])


class Held:
    """Something broken, kept so by renewals until `end`."""

    def __init__(self, remote: Remote, fault: str, port: int, key: str) -> None:
        self.fault = fault
        self.lost = ""  # why the node undid it before we asked for it
        self._node = remote.name
        self._key = bytes.fromhex(key)
        self._number = 0
        self._buffer = b""
        self._over = threading.Event()
        try:
            self._socket = socket.create_connection((remote.host, port), timeout=CONNECT_S)
        except OSError as error:
            raise Refused(
                f"{self._node}'s port {port} for drills cannot be reached, so nothing was broken: {error}; if a"
                " firewall is between, give it a fixed one: FLYPG_DRILLS_PORT"
            ) from None
        try:
            said = self._say("go")
        except OSError as error:
            self._socket.close()
            raise Refused(f"{self._node} did not answer the drill: {error}") from None
        if said != "broken":
            self._socket.close()
            raise Refused(f"{self._node}: {fault}: {said.removeprefix('failed: ')}")
        self._thread = threading.Thread(target=self._renew, name=f"renew {fault}", daemon=True)
        self._thread.start()

    def end(self) -> str:
        """Undo it. Returns what the node says of it. Raises Refused when it was undone before."""
        self._over.set()
        self._thread.join(ANSWER_S)
        try:
            if not self.lost:
                said = self._say("end")
                return said.removeprefix("undone").strip()
        except OSError as error:
            self.lost = str(error)
        finally:
            self._socket.close()
        raise Refused(f"{self._node} undid {self.fault} before the drill was over: {self.lost}")

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                said = self._say("renew")
            except OSError as error:
                said = str(error)
            if said != "ok":
                self.lost = "its time was up" if said.startswith("undone") else said
                return

    def _say(self, word: str) -> str:
        """Raises OSError."""
        self._number += 1
        number = str(self._number)
        self._socket.settimeout(ANSWER_S)
        self._socket.sendall(f"{word} {number} {tag(self._key, word, number)}\n".encode())
        while b"\n" not in self._buffer:
            data = self._socket.recv(4096)
            if not data:
                raise OSError("the connection was closed")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")
