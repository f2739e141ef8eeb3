"""Which certificate a server really shows: the beginning of a connection is made, and nothing more."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from contextlib import suppress
from functools import cache

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@cache
def _anything() -> ssl.SSLContext:
    """We compare the certificate ourselves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def shown_at(host: str, port: int, within_s: float = 3.0) -> bytes | None:
    """The certificate (DER) that PostgreSQL or PgBouncer shows there; b"": it offers no TLS; None: no answer. No login,
    and nothing in its log."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(SSL_REQUEST)
            answer = await reader.read(1)
            if answer != b"S":
                return b"" if answer == b"N" else None
            await writer.start_tls(_anything())
            found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            await _leave(writer)
            return found
    except (TimeoutError, OSError):  # ssl's errors are among them
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


async def _leave(writer: asyncio.StreamWriter) -> None:
    """In order, so that the server has nothing to log."""
    await asyncio.sleep(0.01)  # what it sends after the handshake is read: the kernel would reset the connection for it
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()
