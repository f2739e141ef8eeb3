"""Keeps the certificate of a node: the cluster's authority, this node's certificate, and whom it trusts.

Theory of operation. Every few seconds this reads what the cluster has agreed on and brings the node one step nearer.
The primary makes the authority when there is none (another node does when the primary has not for a while); everybody
signs for itself, with a key that lies sealed in etcd. What is made is made by a program of its own, `issue.py`, in a
fraction of a second; the agent only holds texts. A new certificate is shown after a reload of PostgreSQL and PgBouncer,
which disconnects nobody, and looked at from outside until both really show it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Never

from agent.renewal import (
    AUTHORITY_DAYS,
    LIFETIME_DAYS,
    Wanted,
    all_names,
    bundle_of,
    verifiable,
    why_new,
)
from agent.shown import fingerprint, shown_at
from agent.tls import TlsFiles, TlsSettings, read_own
from cluster.clock import Clock
from cluster.errors import FlypgError, SettingsError, StoreConflict
from cluster.model import Member, View
from cluster.trust import Authorities, Authority, Shown, Trust, TrustStore
from cluster.x509 import Certificate, parse
from postgres import command
from postgres.tls import Tls, TlsState

FIRST_S, SOON_S, SETTLED_S = 0.25, 1.0, 10.0  # between two looks: without a certificate, while something changes, else
SETTLED_LOOK_S = 60.0  # what only time changes is looked at so often
SOON_FOR_S = 60.0  # a server that is copied for hours is not looked at every second
WAIT_FOR_PRIMARY_S = 30.0  # before a node that is not primary makes the authority
SEAL_AFTER_S = 60.0  # of running: then it is tried once whether the key is sealed with today's password
NEW_NAMES_EVERY_S = 5.0  # while nodes join one after the other, not a certificate for each
LOOK_AGAIN_S = 600.0  # at what the servers show
ISSUE_S = 60.0
ISSUE = Path(__file__).with_name("issue.py")


@dataclass(frozen=True, slots=True)
class Report:
    """How the node's certificate is, for checks, metrics and `flypg status`. Times are seconds since 1970."""

    shown: bool  # do the servers show one?
    own: bool
    not_after: float | None
    authority_not_after: float | None
    problem: str
    wanted: bool  # False: TLS is switched off


@dataclass(frozen=True, slots=True)
class Node:
    """What the certificates need to know of their node."""

    cluster: str
    member: Callable[[], Member]
    view: Callable[[], View | None]
    names: Callable[[], tuple[str, ...]]
    secret: str  # the password all nodes share
    look_at: tuple[tuple[str, int], ...]  # servers of this node that show the certificate: PostgreSQL, PgBouncer
    apply: Callable[[], Awaitable[None]]  # have the servers read what has changed


class Certificates:
    """The certificates of one node. `run` is its task, `state` what the servers and connections of the node follow."""

    def __init__(
        self, settings: TlsSettings, files: TlsFiles, state: TlsState, store: TrustStore, node: Node, clock: Clock
    ) -> None:
        self.state = state
        self._settings = settings
        self._files = files
        self._store = store
        self._node = node
        self._clock = clock
        self._began = clock.boottime()
        self._certificate = files.certificate() if state.shown is not None else None
        self._authority_ends: float | None = None
        self._held = files.held() if not settings.own else None
        self._problem = ""
        self._first = True
        self._noted: dict[str, Any] = {}
        self._own_files: object = None  # their times and sizes when they were last read
        self._own_ca = ""
        self._issued_at = float("-inf")
        self._unseen = True  # it is not known yet whether the servers show what they should
        self._looked_at = float("-inf")
        self._seal_tried = False
        self._settled: tuple[Trust, View | None, float] | None = None  # with what nothing was left to do, and when
        self._log = logging.getLogger("flypg.tls")

    def report(self) -> Report:
        ends = self._certificate.not_after if self._certificate is not None and self.state.shown is not None else None
        return Report(
            shown=self.state.shown is not None and not self._unseen,
            own=self._settings.own,
            not_after=ends,
            authority_not_after=self._authority_ends,
            problem=self._problem,
            wanted=self._settings.mode != "off",
        )

    async def run(self) -> Never:
        said, soon_until = "", self._clock.boottime() + SOON_FOR_S
        while True:
            try:
                settled = await self._turn()
                said = ""
                if settled:
                    soon_until = self._clock.boottime() + SOON_FOR_S
            except (FlypgError, TimeoutError, OSError) as error:
                settled, problem = False, str(error) or type(error).__name__
                if not isinstance(error, StoreConflict) and problem != said:
                    said = problem
                    self._log.warning("certificates are not kept now", extra={"error": problem})
                await asyncio.sleep(SOON_S)
            missing = self.state.shown is None and self._settings.mode != "off"
            patient = settled or self._clock.boottime() > soon_until
            await asyncio.sleep(SETTLED_S if patient else FIRST_S if missing else SOON_S)

    async def _turn(self) -> bool:
        """One look and what follows from it. False: look again soon."""
        trust = await self._store.follow()
        view, now = self._node.view(), self._clock.wall()
        if self._unchanged(trust, view):
            return True
        if await self._need_authority(trust.authorities, view):
            return False
        signer = trust.authorities.signer
        self._authority_ends = parse(signer.certificate).not_after if signer is not None else None
        problem, changed = "", False
        if self._settings.own:
            changed, problem = await self._follow_own(now)
        elif self._settings.mode != "off" and signer is not None:
            changed, problem = await self._follow(trust, signer, view, now)
        changed = changed or self._first_look()
        changed = self._trust(bundle_of(trust, view, self._own_ca), verifiable(trust, view, now)) or changed
        if changed:
            self._unseen = True
            await self._node.apply()
        if self._unseen or self._clock.boottime() - self._looked_at > LOOK_AGAIN_S:
            await self._look()
        self._problem = problem or self._ended(now)
        self._write_notes()
        await self._tell(trust)
        await self._seal_again(trust.authorities)
        waits = signer is None and not self._settings.own and self._settings.mode != "off"
        settled = not (changed or waits or self._unseen or self._incomplete(view, trust))
        self._settled = (trust, view, self._clock.boottime()) if settled else None
        return settled

    def _unchanged(self, trust: Trust, view: View | None) -> bool:
        """Was the node settled with just this, and not long ago? An operator's files are looked at each time."""
        if self._settled is None or self._settings.own:
            return False
        same = self._settled[0] is trust and self._settled[1] is view
        return same and self._clock.boottime() - self._settled[2] < SETTLED_LOOK_S

    def _first_look(self) -> bool:
        """Once: has an operator changed whether clients must use TLS, or may not any more?"""
        first, self._first = self._first, False
        if not first:
            return False
        before = self._files.notes()
        ended = self._settings.mode == "off" and bool(before.get("fingerprint"))
        return ended or bool(before.get("required", False)) != self.state.required

    def _ended(self, now: float) -> str:
        if self._certificate is None or self._certificate.not_after > now:
            return ""
        return "the certificate has ended"

    def _incomplete(self, view: View | None, trust: Trust) -> bool:
        """Is a member still to tell what it shows?"""
        young = self._clock.boottime() - self._began < SEAL_AFTER_S
        return young and (view is None or any(member.node not in trust.nodes for member in view.members))

    # The authority

    async def _need_authority(self, agreed: Authorities, view: View | None) -> bool:
        """Make the authority that is missing or asked for. True: one was made, read again."""
        if agreed.number >= agreed.wanted or self._settings.mode == "off":
            return False
        me = self._node.member().node
        first = not agreed.trusted
        waited = self._clock.boottime() - self._began > WAIT_FOR_PRIMARY_S
        if first and (self._settings.own or not ((view is not None and view.primary == me) or waited)):
            return False
        old = agreed.signer
        made = await self._issue(
            task="authority",
            cluster=self._node.cluster,
            days=AUTHORITY_DAYS,
            old={"certificate": old.certificate, "key": old.key} if old is not None else None,
        )
        certificate = parse(made["certificate"])
        new = Authority(made["certificate"], certificate.fingerprint, made["cross"], made["key"])
        kept = tuple(replace(authority, key="") for authority in agreed.trusted)
        await self._store.put(
            replace(agreed, trusted=(new, *kept), number=max(agreed.number + 1, agreed.wanted), round=agreed.round + 1)
        )
        self._files.write_private(made["private"])
        self._log.info("made the authority of this cluster", extra={"authority": certificate.subject})
        return True

    async def _seal_again(self, agreed: Authorities) -> None:
        """The shared password may have changed while we were down: whoever still has the key seals it with the new."""
        if self._seal_tried or self._clock.boottime() - self._began < SEAL_AFTER_S:
            return
        self._seal_tried = True
        signer, private = agreed.signer, self._files.private()
        if signer is None or not private:
            return
        made = await self._issue(task="seal", authority={"certificate": signer.certificate, "key": signer.key})
        if made.get("key"):
            new = replace(signer, key=made["key"])
            await self._store.put(replace(agreed, trusted=(new, *agreed.trusted[1:])))
            self._log.info("the authority's key was sealed with the new password")

    # This node's certificate

    async def _follow(self, trust: Trust, signer: Authority, view: View | None, now: float) -> tuple[bool, str]:
        """Renew it when that is due. Whether it was, and what is wrong."""
        names = all_names(self._node.names(), view, trust.nodes)
        ends = self._authority_ends or 0.0
        why = why_new(self._held, Wanted(signer.fingerprint, ends, trust.authorities.round, names), now)
        if not why:
            return False, ""
        if why.startswith("it does not name") and self._clock.boottime() - self._issued_at < NEW_NAMES_EVERY_S:
            return False, ""
        member = self._node.member()
        made = await self._issue(
            task="certificate",
            authority={"certificate": signer.certificate, "cross": signer.cross, "key": signer.key},
            name=member.node,
            names=sorted(names),
            days=LIFETIME_DAYS,
        )
        if made.get("error"):
            return False, (
                f"no certificate ({why}): the authority's key is sealed with another SU_PASSWORD than this node's;"
                " give every node the same, or make a new authority: flypg tls rotate --ca"
            )
        self._issued_at = self._clock.boottime()
        self._files.write_private(made["private"])
        certificate = parse(made["pem"])
        self._files.write_server(made["pem"])
        self._noted |= {"authority": signer.fingerprint, "round": trust.authorities.round}
        self._show(certificate, self._files.shown(certificate))
        self._held = self._files.held()
        self._log.info("new certificate", extra={"why": why, "names": ", ".join(sorted(names))})
        return True, ""

    async def _follow_own(self, now: float) -> tuple[bool, str]:
        """Take up an operator's files when they have changed; what is wrong with them changes nothing."""
        seen = self._stamp()
        if seen == self._own_files:
            return False, self._problem if self._problem.startswith("FLYPG_TLS_") else ""
        shown = self.state.shown.fingerprint if self.state.shown is not None else ""
        try:
            pair = await asyncio.to_thread(read_own, self._settings, now, shown)
        except SettingsError as error:
            if self._own_files is not None:
                self._log.error("the changed certificate is not taken up", extra={"error": str(error)})
            self._own_files = seen
            return False, str(error)
        self._own_files = seen
        self._own_ca = pair.ca
        new = pair.certificate.fingerprint != shown or pair.pem != self._files.server.read_text()
        if new:
            self._files.write_server(pair.pem)
            self._log.info("the operator's certificate was taken up", extra={"file": self._settings.certificate})
        self._show(pair.certificate, self._files.shown(pair.certificate))
        return new, ""

    def _stamp(self) -> object:
        """What tells whether an operator's files were replaced."""
        found = []
        for name in (self._settings.certificate, self._settings.key, self._settings.ca):
            try:
                stat = Path(name).stat() if name else None
            except OSError:
                stat = None
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size) if stat is not None else None)
        return tuple(found)

    def _show(self, certificate: Certificate, shown: Tls) -> None:
        self._certificate = certificate
        self.state.shown = shown
        self._write_notes()

    def _write_notes(self) -> None:
        """For the next agent, which may have to begin without etcd."""
        shown = self.state.shown
        before = self._files.notes() if not self._noted else {}
        noted = {
            "own": self._settings.own,
            "fingerprint": shown.fingerprint if shown is not None else "",
            "authority": self._noted.get("authority", before.get("authority", "")),
            "round": self._noted.get("round", before.get("round", 0)),
            "verified": sorted([host, port] for host, port in self.state.verified),
            "required": self.state.required,
        }
        if noted != self._noted:
            self._files.write_notes(noted)
            self._noted = noted

    def _trust(self, bundle: str, verified: frozenset[tuple[str, int]]) -> bool:
        """Trust these from now on. True: the servers should read the file again."""
        mark = fingerprint(bundle.encode()) if bundle else ""
        changed = bool(bundle) and mark != self.state.trusts
        if changed:
            self._files.write_bundle(bundle)
            self.state.bundle, self.state.trusts = self._files.bundle, mark
        changed = changed or verified != self.state.verified
        self.state.verified = verified
        return changed

    async def _look(self) -> None:
        """Do the servers show what they should? While they do not, or do not run yet, they are told again."""
        shown = self.state.shown
        self._looked_at = self._clock.boottime()
        if shown is None:
            self._unseen = False
            return
        found = await asyncio.gather(*(shown_at(host, port) for host, port in self._node.look_at))
        others = any(der is not None and fingerprint(der) != shown.fingerprint for der in found)
        self._unseen = others or found[0] is None  # without PgBouncer it is shown all the same
        if others:
            await self._node.apply()

    async def _tell(self, trust: Trust) -> None:
        """Say in etcd what this node shows, when that has changed."""
        shown, member = self.state.shown, self._node.member()
        said = Shown(
            node=member.node,
            own=self._settings.own,
            fingerprint=shown.fingerprint if shown is not None else "",
            authority=str(self._noted.get("authority", "")) if not self._settings.own else "",
            round=int(self._noted.get("round", 0)),
            not_after=self._certificate.not_after if self._certificate is not None and shown is not None else 0.0,
            names=self._node.names(),
            ca=self._own_ca,
            required=self.state.required,
            problem=self._problem,
        )
        if said != trust.nodes.get(member.node):
            await self._store.tell(said)

    async def _issue(self, **asked: Any) -> dict[str, Any]:
        """What `issue.py` makes of it. Raises CommandFailed."""
        asked |= {"secret": self._node.secret, "private": self._files.private()}
        out = await command.run([sys.executable, "-P", str(ISSUE)], timeout_s=ISSUE_S, stdin=json.dumps(asked).encode())
        made: dict[str, Any] = json.loads(out)
        return made
