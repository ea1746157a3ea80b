# SPDX-License-Identifier: Apache-2.0
"""Who is connected to a service: a request holds its connection until the last token of its answer is out."""

from __future__ import annotations

import time
from typing import Callable, Dict, Mapping, Optional, Sequence

#: States in /proc/net/tcp (include/net/tcp_states.h in Linux).
ESTABLISHED = "01"
LISTEN = "0A"
INTERVAL_SECONDS = 0.3


def clients(tables: Sequence[str], port: Optional[int] = None) -> int:
    """Count the connections that clients hold, by the texts of ``/proc/<pid>/net/tcp`` and ``tcp6``.

    A client is connected, from another address than the loopback's, to a port on which somebody listens; engines
    whose processes talk among each other do so over the loopback. ``port`` narrows it to one port, for a service in the
    network of its host.
    """
    rows = [row for table in tables for row in map(str.split, table.splitlines()[1:]) if len(row) > 3]
    listening = {_port(row[1]) for row in rows if row[3] == LISTEN}
    wanted = listening if port is None else listening & {f"{port:04X}"}
    return sum(1 for row in rows if row[3] == ESTABLISHED and _port(row[1]) in wanted and not _loopback(row[2]))


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def _loopback(endpoint: str) -> bool:
    """Tell 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104; each 32 bits are written in the machine's byte order."""
    address = endpoint.rpartition(":")[0]
    mapped = address.startswith("0000000000000000FFFF0000")
    if len(address) == 8 or mapped:
        return address.endswith("7F")
    return address == "00000000000000000000000001000000"


def wait_until_idle(
    count: Callable[[str], int],
    services: Sequence[str],
    timeout_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Dict[str, int]:
    """Wait until every service was once seen without a connection; return the connections of those that were not.

    Once is enough: whoever is drained gets no new requests, and a health check, which comes and goes within the
    interval, must not look like one.
    """
    deadline = now() + timeout_seconds
    busy: Mapping[str, int] = {name: count(name) for name in services}
    while True:
        busy = {name: number for name, number in busy.items() if number}
        if not busy or now() >= deadline:
            return dict(busy)
        sleep(INTERVAL_SECONDS)
        busy = {name: count(name) for name in busy}
