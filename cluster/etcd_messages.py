"""etcd's messages made of our values, and our values made of its answers. For cluster/etcd.py alone."""

from __future__ import annotations

from typing import Any

from cluster.etcd_grpc import etcdrpc
from cluster.etcd_values import (
    Changes,
    Comparison,
    Created,
    Delete,
    Found,
    Get,
    KeyValue,
    Modified,
    Operation,
    Put,
)

DELETED = 1  # mvccpb.Event.EventType


def range_request(wanted: Get) -> Any:
    """A read."""
    return etcdrpc.RangeRequest(
        key=wanted.key.encode(),
        range_end=wanted.end.encode(),
        limit=wanted.limit,
        sort_order=etcdrpc.RangeRequest.DESCEND if wanted.descending else etcdrpc.RangeRequest.NONE,
        keys_only=wanted.keys_only,
    )


def operation(wanted: Operation) -> Any:
    """A part of a transaction."""
    match wanted:
        case Get():
            return etcdrpc.RequestOp(request_range=range_request(wanted))
        case Put(key=key, value=value, lease=lease):
            return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key.encode(), value=value, lease=lease))
        case Delete(key=key, end=end):
            request = etcdrpc.DeleteRangeRequest(key=key.encode(), range_end=end.encode())
            return etcdrpc.RequestOp(request_delete_range=request)


def comparison(wanted: Comparison) -> Any:
    """What a transaction depends on."""
    key = wanted.key.encode()
    match wanted:
        case Modified(revision=revision):
            return etcdrpc.Compare(key=key, result=0, target=etcdrpc.Compare.MOD, mod_revision=revision)
        case Created(revision=revision):
            return etcdrpc.Compare(key=key, result=0, target=etcdrpc.Compare.CREATE, create_revision=revision)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def found_in(response: Any, revision: int) -> Found:
    """What a read has brought, at this revision."""
    return Found(revision, tuple(_key_value(kv) for kv in response.kvs))


def changes_in(response: Any) -> Changes:
    """What an answer of a watch tells; of a key that was written twice the last counts."""
    put: dict[str, KeyValue] = {}
    gone: dict[str, int] = {}
    revision = 0
    for event in response.events:
        item = _key_value(event.kv)
        revision = max(revision, item.modified)
        put.pop(item.key, None)
        gone.pop(item.key, None)
        if event.type == DELETED:
            gone[item.key] = item.modified
        else:
            put[item.key] = item
    return Changes(revision, tuple(put.values()), tuple(gone.items()))
