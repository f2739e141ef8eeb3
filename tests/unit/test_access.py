"""What of an old pg_hba.conf is carried over when its volume is taken over."""

from __future__ import annotations

import pytest

from cluster.errors import InstanceError
from cluster.model import Spec
from cluster.spec import checked
from postgres.access import EVERYBODY, FOR_POOLER, access
from postgres.config import check_parameters

STOLON = """
local postgres flypgadmin md5
local replication repluser md5
host all flypgadmin 0.0.0.0/0 md5
host all flypgadmin ::0/0 md5
host replication repluser 0.0.0.0/0 md5
host replication repluser ::0/0 md5
"""
INITDB = """
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             all                                     trust
host    all             all             127.0.0.1/32            trust
host    all             all             ::1/128                 trust
local   replication     all                                     trust
host    replication     all             127.0.0.1/32            trust
"""
STORIES = [
    ("what initdb writes is for the machine", INITDB, ()),
    ("stolon's own lines are flypg's business now", STOLON, ()),
    (
        "stolon's default for clients stays",
        STOLON + "host all all 0.0.0.0/0 md5\nhost all all ::0/0 md5\n",
        ("host all all 0.0.0.0/0 md5", "host all all ::0/0 md5"),
    ),
    (
        "an operator's lines keep their order and lose their comments",
        INITDB + "hostssl shop app,etl 10.0.0.0/8 scram-sha-256 # the shop\nhost all bob all reject\n",
        ("hostssl shop app,etl 10.0.0.0/8 scram-sha-256", "host all bob all reject"),
    ),
    ("a list that goes on after a space", "host shop app, etl all md5", ("host shop app,etl all md5",)),
    ("a line that goes on", "host shop \\\n  app all md5", ("host shop app all md5",)),
    ("a mask of its own", "host shop app 10.0.0.0 255.0.0.0 md5", ("host shop app 10.0.0.0 255.0.0.0 md5",)),
    ("a name in quotes", 'host "Shop#1" app all md5', ('host "Shop#1" app all md5',)),
    ("a standby of others", "host replication cdc 10.1.2.3/32 md5", ("host replication cdc 10.1.2.3/32 md5",)),
    ("a directory service", "host all all all ldap ldapserver=l", ("host all all all ldap ldapserver=l",)),
]  # fmt: skip


@pytest.mark.parametrize(("story", "text", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_what_is_kept(story: str, text: str, expected: tuple[str, ...]) -> None:
    found = access(text)
    assert found.lines == ((*FOR_POOLER, *expected) if expected else EVERYBODY)
    assert found.left_out == ()
    check_parameters((), found.lines)
    checked(Spec(hba=found.lines), frozenset())


LEFT_OUT = [
    ("host all all 10.0.0.0/8 trust", "whoever reaches a router"),
    ("host all all all ident", "clients come from the nodes"),
    ("hostssl all all all cert map=people", "authority"),
    ("host @databases all all md5", "file of the old machine"),
    ("host all all all ldap ldapserver=l ldapbindpasswd=hidden", "holds a secret"),
    ("host all all all radius radiusservers=r radiussecrets=hidden", "holds a secret"),
    ('host "my db" all all md5', "a name with a space"),
    ("host all all 10.0.0.300/8 md5", "an address that is none"),
    ("include other.conf", "no line for clients"),
    ("host all all all", "not complete"),
    ("host all all all pam pamservice=db", "uses pam"),
]


@pytest.mark.parametrize(("line", "why"), LEFT_OUT, ids=[line for line, _ in LEFT_OUT])
def test_what_is_left_out_says_why_and_no_secret(line: str, why: str) -> None:
    found = access(f"{line}\nhost all all all md5")
    assert found.lines == (*FOR_POOLER, "host all all all md5")
    assert len(found.left_out) == 1 and why in found.left_out[0] and "hidden" not in found.left_out[0]


def test_who_was_kept_out_stays_out_or_nothing_happens() -> None:
    with pytest.raises(InstanceError, match=r"line 2 .*host \"my db\" all all reject.*name with a space"):
        access('\nhost "my db" all all reject\nhost all all all md5')
    assert access("local all all reject\nhost all all all md5").lines == (*FOR_POOLER, "host all all all md5")
