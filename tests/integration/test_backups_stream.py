"""The archive is behind by seconds: WAL of a segment that is not full is stored in pieces, and restored from them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from backups import layout
from backups.codec import Codec, SealingKey
from backups.restore import make_plan
from backups.restore_plan import Refused, Target, TargetKind
from backups.stream import WalStreamer, assemble, whole
from backups.walqueue import Queue
from cluster.model import format_lsn, parse_lsn
from tests.support.archive import Archived, directory, path_for, restored, rows_of, snapshot, until
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
MB = 1 << 20


def flushed(server: PgServer) -> int:
    ((lsn,),) = server.sql("SELECT pg_current_wal_flush_lsn()::text")
    return parse_lsn(str(lsn))


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_what_was_streamed_is_restored(server: PgServer, sealed: bool) -> None:
    """Nothing of it is in a whole segment; then the segment is archived, and its pieces go."""
    codec = Codec(key=SealingKey(bytes(range(32)))) if sealed else Codec()
    path = path_for(server, directory(server.root), codec)
    archived = Archived(server, path)
    archived.archiver.stand(1)
    server.sql("CREATE TABLE t (n int)")
    snapshot(server, path, codec, "a")
    archived.flush()
    streamer = WalStreamer(path, server.data / "pg_wal", segment_bytes=MB, every_s=1)
    streamer.tick()
    assert not list(path.stored("stream/")), "not told yet"
    for number in (1, 2, 3):
        server.sql(f"INSERT INTO t VALUES ({number})")
        streamer.told(1, flushed(server))
        streamer.tick()
    until_lsn = flushed(server)
    pieces = [p for info in path.stored("stream/") if (p := layout.piece_of(info.key)) is not None]
    assert len(pieces) == 3 and pieces[0].start == 0, pieces
    again = WalStreamer(path, server.data / "pg_wal", segment_bytes=MB, every_s=1)  # its process was restarted
    again.told(1, until_lsn)
    again.tick()
    assert len(list(path.stored("stream/"))) == 3, "nothing is sent twice"
    reach = again.reach(Queue(until=until_lsn // MB * MB, until_at=1.0), 1)
    assert (reach.until, reach.streamed) == (until_lsn, True)
    server.sql("INSERT INTO t VALUES (99)")  # not streamed: lost
    _, result = restored(path, Target(TargetKind.LATEST), server.root / "latest")
    assert rows_of(result.directory, "SELECT n FROM t ORDER BY n") == [(1,), (2,), (3,)]
    to = Target(TargetKind.LSN, format_lsn(until_lsn), lsn=until_lsn)
    assert not isinstance(make_plan(path, to), Refused)
    beyond = until_lsn + 1000
    assert isinstance(make_plan(path, Target(TargetKind.LSN, format_lsn(beyond), lsn=beyond)), Refused)
    assert server.sql("SELECT count(*) FROM pg_stat_replication") == [(0,)], "nobody who could acknowledge anything"
    assert server.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    archived.flush()
    server.sql("INSERT INTO t VALUES (4)")
    until(archived.drained, "archived")
    again.told(1, flushed(server))
    again.tick()
    left = {p.segment for info in path.stored("stream/") if (p := layout.piece_of(info.key)) is not None}
    assert left.isdisjoint(p.segment for p in pieces), "the segment itself is there now"
    _, result = restored(path, Target(TargetKind.LATEST), server.root / "later")
    assert rows_of(result.directory, "SELECT n FROM t ORDER BY n") == [(1,), (2,), (3,), (4,), (99,)]
    archived.stop()


def test_pieces_by_hand(server: PgServer, tmp_path: Path) -> None:
    """The page's own lines put together what flypg would."""
    path = path_for(server, directory(server.root), Codec())
    streamer = WalStreamer(path, server.data / "pg_wal", segment_bytes=MB, every_s=1)
    for number in (1, 2):
        server.sql(f"CREATE TABLE t{number} (n int)")
        streamer.told(1, flushed(server))
        streamer.tick()
    piece = layout.piece_of(next(iter(path.stored("stream/"))).key)
    assert piece is not None
    page = (Path(__file__).resolve().parents[2] / "docs" / "restore-by-hand.md").read_text()
    (script,) = re.findall(r"```bash\n(# restore: pieces\n.*?)```", page, re.DOTALL)
    (tmp_path / "pg_wal").mkdir()
    env = {"REPOSITORY": f"{server.root}/repository/{path.name}", "TARGET": str(tmp_path), "TIMELINE": "1"}
    env |= {"SEGMENT_BYTES": str(MB)}
    subprocess.run(["bash", "-euc", script], env=os.environ | env, check=True, timeout=60)
    assert (tmp_path / "pg_wal" / piece.segment).read_bytes() == assemble(path, piece.segment, MB)


def test_pieces_that_overlap_or_miss_one() -> None:
    assert whole([]) == 0
    assert whole([(0, 10), (10, 20), (5, 15)]) == 20
    assert whole([(0, 10), (11, 20)]) == 10
    assert whole([(1, 10)]) == 0
