"""What a drill may ask of a live node, and how a node knows that the asker may. Pure.

Whoever knows the operator's password may ask. The password never travels: a node gives out a challenge, which is good
for one order and for a few seconds of the node's own clock, and takes an order whose tag (HMAC) covers the challenge,
the node and every byte of the order. A key for what follows (the renewals) is made from that challenge, so nothing that
was overheard is worth anything later, or on another node.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass

PARTS = ("postmaster", "postgres", "agent", "fence", "haproxy", "pgbouncer", "node")
NETWORK = ("isolate", "deaf", "mute", "lossy", "cut-etcd", "cut-replication", "cut-clients")
FAULTS = (*(f"kill-{part}" for part in PARTS), *(f"freeze-{part}" for part in PARTS), *NETWORK)
LONGEST_S = 60.0
ROUNDS = 100_000  # a short password shall not be found from an overheard tag at once
ASKER = re.compile(r"[A-Za-z0-9 @._+:-]{1,80}\Z")
MAX_ORDER = 2048


class BadOrder(Exception):
    """An order that a node does not understand; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Order:
    """Break this for so long at most."""

    fault: str
    for_s: float
    asked_by: str

    def __str__(self) -> str:
        return f"{self.fault} for at most {self.for_s:g} s, asked by {self.asked_by}"


def key_of(password: str, cluster: str) -> bytes:
    """The key of a cluster's drills. Takes some hundredths of a second."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), f"flypg drill {cluster}".encode(), ROUNDS)


def tag(key: bytes, *words: str) -> str:
    """What shows that these words come from somebody who has the key."""
    return hmac.new(key, "\n".join(words).encode(), hashlib.sha256).hexdigest()


def order_tag(key: bytes, what: str, node: str, nonce: str, text: str) -> str:
    """The tag of an order. `what`: "offer" or "begin"."""
    return tag(key, what, node, nonce, text)


def session_key(key: bytes, nonce: str) -> str:
    """The key of the renewals that follow an order."""
    return tag(key, "session", nonce)


def same(one: str, other: str) -> bool:
    """Are the tags the same? Takes as long whatever differs."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def write_order(order: Order) -> str:
    return json.dumps({"fault": order.fault, "for_s": order.for_s, "asked_by": order.asked_by})


def read_order(text: str) -> Order:
    """Raises BadOrder: an order has these three fields, and nothing else."""
    if len(text) > MAX_ORDER:
        raise BadOrder(f"the order is longer than {MAX_ORDER} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadOrder("the order is not JSON") from None
    if not isinstance(found, dict) or set(found) != {"fault", "for_s", "asked_by"}:
        raise BadOrder("an order has the fields fault, for_s and asked_by, and no others")
    fault, for_s, asked_by = found["fault"], found["for_s"], found["asked_by"]
    if fault not in FAULTS:
        raise BadOrder(f"no fault {fault!r}"[:100] + f"; there are {', '.join(FAULTS)}")
    if isinstance(for_s, bool) or not isinstance(for_s, int | float) or not 1 <= for_s <= LONGEST_S:
        raise BadOrder(f"for_s must be a number of seconds from 1 to {LONGEST_S:g}")
    if not isinstance(asked_by, str) or not ASKER.match(asked_by):
        raise BadOrder("asked_by must be up to 80 letters, digits and @._+:-")
    return Order(fault, float(for_s), asked_by)
