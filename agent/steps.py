"""What a keeper can do next on its node. Values, safe to repeat. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import NodeId, Position, Rule, Upstream


@dataclass(frozen=True, slots=True)
class InitDb:
    """Create the cluster's first data directory."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `source` afresh. `floor` (the primary's position) is written to disk first. `seed`: the data may come from
    the repository, if this node is set so."""

    source: Upstream
    seed: bool = True


@dataclass(frozen=True, slots=True)
class Rewind:
    """Make this node's history a prefix of that of `source`. The floor is written first."""

    source: Upstream


@dataclass(frozen=True, slots=True)
class CopyDone:
    """Note on disk that the base backup is complete."""


@dataclass(frozen=True, slots=True)
class StartStandby:
    """Start as a standby, detached when `upstream` is None, gate closed."""

    upstream: Upstream | None


@dataclass(frozen=True, slots=True)
class StartPrimary:
    """Start as the primary of the current term, gate closed until the barrier."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the server: in order, or at once."""

    fast: bool


@dataclass(frozen=True, slots=True)
class HandOver:
    """Stop in order for a switchover, and promise `term` as soon as the end of this server's WAL is known."""

    term: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Receive WAL from `upstream`; `upstream.term` is promised on disk first."""

    upstream: Upstream


@dataclass(frozen=True, slots=True)
class CheckWal:
    """It does not stream: ask `source` whether it still has the WAL that this node needs next."""

    source: Upstream


@dataclass(frozen=True, slots=True)
class GivePromise:
    """Detach from any primary of a term below `term`, then promise: disk, then etcd."""

    term: int


@dataclass(frozen=True, slots=True)
class PromiseStopped:
    """As a primary that has stopped cleanly with its end at `position`: promise `term`."""

    term: int
    position: Position


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell etcd the promise that is on disk already."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Become primary of `term` on `timeline` under `rule`; noted on disk first."""

    term: int
    timeline: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class ApplyRule:
    """Run `rule` as primary, demonstrably."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class Barrier:
    """Prove that a write is acknowledged under `rule`."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class CreateRoles:
    """Make sure that the users flypg works with exist, before anybody needs them."""


@dataclass(frozen=True, slots=True)
class OpenGate:
    """Let clients in."""


@dataclass(frozen=True, slots=True)
class CloseGate:
    """Keep clients out."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """CHECKPOINT: before a switchover (`request`), with what else makes its stop short; or so that the control file
    shows a new timeline (request "")."""

    request: str


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """Write the operator's PostgreSQL settings and pg_hba lines, and reload."""

    parameters: tuple[tuple[str, str], ...]
    hba: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepSlots:
    """A replication slot for each of these nodes, none for former members."""

    nodes: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop in order on purpose, after having said so; the next turns start it again."""

    request: str


@dataclass(frozen=True, slots=True)
class CloseRequest:
    """Answer an operator's request."""

    request: str
    outcome: str


Step = (
    InitDb
    | Copy
    | Rewind
    | CopyDone
    | StartStandby
    | StartPrimary
    | Stop
    | HandOver
    | Follow
    | CheckWal
    | GivePromise
    | PromiseStopped
    | Publish
    | Promote
    | ApplyRule
    | Barrier
    | CreateRoles
    | OpenGate
    | CloseGate
    | Checkpoint
    | ApplySettings
    | KeepSlots
    | Restart
    | CloseRequest
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step, or None when there is nothing to do, with the reason.

    `soon`: what is waited for takes milliseconds, so look again at once. `problem`: people must be told.
    """

    step: Step | None
    why: str
    soon: bool = False
    problem: bool = False
