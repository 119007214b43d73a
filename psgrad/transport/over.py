"""A transport that passes everything on to another one; who derives from it changes a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psgrad.messages import Header
from psgrad.transport import Buffer, Place, Sent, Transport


class Over:
    """``Transport`` by means of ``below``."""

    def __init__(self, below: Transport) -> None:
        self._below = below

    @property
    def rank(self) -> int:
        return self._below.rank

    @property
    def size(self) -> int:
        return self._below.size

    @property
    def host(self) -> str:
        return self._below.host

    @property
    def cores(self) -> int:
        return self._below.cores

    def now(self) -> float:
        return self._below.now()

    def sleep(self, seconds: float) -> None:
        self._below.sleep(seconds)

    def exchange(self, blob: bytes) -> list[bytes]:
        return self._below.exchange(blob)

    def subgroup(self, ranks: Sequence[int]) -> Any:
        return self._below.subgroup(ranks)

    def connect(self, peers: Sequence[int]) -> None:
        self._below.connect(peers)

    def send(self, peer: int, header: Header, payload: Buffer | None = None) -> Sent:
        return self._below.send(peer, header, payload)

    def flush(self) -> None:
        self._below.flush()

    def receive(self, place: Place, timeout: float | None = None) -> tuple[int, Header] | None:
        return self._below.receive(place, timeout)

    def tolerate(self) -> None:
        self._below.tolerate()

    def drop(self, peer: int) -> None:
        self._below.drop(peer)

    def forsake(self, peer: int) -> None:
        self._below.forsake(peer)

    def leave(self, status: int) -> None:
        self._below.leave(status)

    def close(self, status: int = 0) -> None:
        self._below.close(status)

    def abort(self, status: int) -> None:
        self._below.abort(status)
