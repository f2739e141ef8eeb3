"""flypg switchover and open transactions: how long they are waited for, what is said, when it is called off."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import pytest

from cluster.errors import PostgresUnavailable
from flypg.cli import build_parser
from flypg.commands.switchover import Seen, objection, settle, told
from flypg.progress import Progress
from postgres.transactions import OpenTransaction

LONG = OpenTransaction(4711, "ada", "shop", "report", 12.34, "idle in transaction", "UPDATE t SET n = 1")
OTHER = replace(LONG, pid=4712, application="", state="active")


def settled(*answers: list[OpenTransaction] | Exception, wait_s: float) -> tuple[Seen, str]:
    """What is seen when looks are answered so, the last answer again and again."""
    left = list(answers)
    out = io.StringIO()

    async def listing() -> list[OpenTransaction]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return asyncio.run(settle(listing, wait_s, Progress(out))), out.getvalue()


def test_nothing_is_open() -> None:
    seen, said = settled([], wait_s=30)
    assert (seen.transactions, seen.unknown, said) == ((), "", "")
    assert told(seen) == objection(seen) == ""


def test_those_that_end_in_time_do_not_matter() -> None:
    seen, said = settled([LONG], [], wait_s=30)
    assert seen.transactions == () and objection(seen) == ""
    assert "4711" in said and "idle in transaction" in said, "what is waited for is listed"


def test_those_that_stay_are_named() -> None:
    seen, _ = settled([LONG, OTHER], wait_s=0)
    assert seen.transactions == (LONG, OTHER)
    assert "2 transactions were open when it was asked for, and ended" in told(seen)
    for part in ("4711", "ada", "shop", "report", "12.3 s", "idle in transaction", "UPDATE t SET n = 1"):
        assert part in told(seen) and part in objection(seen)
    assert "called off" in objection(seen) and "nothing was changed" in objection(seen)
    assert seen.data["transactions"] == [
        {
            "pid": 4711,
            "user": "ada",
            "database": "shop",
            "application": "report",
            "age_s": 12.3,
            "state": "idle in transaction",
            "query": "UPDATE t SET n = 1",
        },
        {**seen.data["transactions"][1]},  # type: ignore[index]
    ]


def test_a_primary_that_cannot_be_asked() -> None:
    seen, _ = settled(PostgresUnavailable("no answer"), wait_s=30)
    assert "could not be listed: no answer" in told(seen)
    assert "cannot be seen (no answer)" in objection(seen)
    assert seen.data["transactions"] is None, "unknown is not none"


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    args = build_parser().parse_args(["switchover"])
    assert (args.wait_transactions, args.then) == (2.0, "end")
    for wrong in (["--then", "hope"], ["--wait-transactions", "-1"]):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(["switchover", *wrong])
        assert ended.value.code == 2
    assert "hope" in capsys.readouterr().err
