"""The zstd stage behind a codec: on, off, or on only where it saves time.

Packed payloads hardly compress, so a stage that is always on slows every fast link down. ``auto``
tries one payload in 64 and keeps the stage on while

    (bytes saved) / (link rate) > (seconds to compress) x 1.5

where the half is for unpacking, and the link rate is the best that a burst of answers came in with
so far (``ServerLinks.link_rate``). The first is that of the pull at registration, when servers have
nothing else to do. As long as no rate is known the stage stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import zstandard

from psgrad.codecs.base import Bytes
from psgrad.codecs.wire import squeeze
from psgrad.errors import ConfigError, unknown_name

ZSTD: Final = ("auto", "on", "off")
LEVEL: Final = 1
TRY_EVERY: Final = 64  # payloads
UNPACKING: Final = 1.5


def check(mode: str) -> None:
    """Raises ``ConfigError`` for a mode that there is not."""
    if mode not in ZSTD:
        raise ConfigError(unknown_name("zstd mode", mode, ZSTD))


class ZstdStage:
    """One worker's stage; ``now`` is its clock in seconds."""

    def __init__(self, mode: str, now: Callable[[], float]) -> None:
        self.active = mode == "on"
        self._mode = mode
        self._now = now
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._seen = 0

    def apply(self, payload: Bytes, link_rate: float) -> int:
        """Compresses the body in place where that is to be done; returns the payload's size.

        ``link_rate`` is in bytes a second, 0 where it is not known.
        """
        if self._mode == "off":
            return payload.size
        if self._mode == "on":
            return squeeze(payload, self._compressor)
        trial = self._seen % TRY_EVERY == 0 and link_rate > 0
        self._seen += 1
        if not trial:
            return squeeze(payload, self._compressor) if self.active else payload.size
        start = self._now()
        nbytes = squeeze(payload, self._compressor)
        seconds = self._now() - start
        saved_s = (payload.size - nbytes) / link_rate
        self.active = saved_s > UNPACKING * seconds
        return nbytes
