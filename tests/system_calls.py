"""Counts what the standard library's ``os`` is asked to change, and interferes at the N-th call.

Whatever opens files by ``os.open`` and changes folders by ``os.rename`` and the like goes through
here while ``Calls`` is installed; reading does not.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from unittest import mock

NAMES = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")


class Calls:
    """Installed by ``with``; ``log`` has (name, path) of each call.

    ``fsync`` does not reach the disk, which only takes time here. ``at`` is the call to interfere
    with, counted from 1. ``error``: it fails with this. Otherwise the process is killed before it
    is made, or, with ``half``, in the middle of a write. ``lossy``: what was written to a file is
    there only when it was synced, as if the power had failed.
    """

    def __init__(self, at=0, *, error=None, half=False, lossy=False):
        self.log = []
        self._at, self._error, self._half, self._lossy = at, error, half, lossy
        self._real = {name: getattr(os, name) for name in NAMES}
        self._paths = {}
        self._kept = {}
        self._patches = [mock.patch.object(os, n, getattr(self, f"_{n}")) for n in NAMES]

    def __enter__(self):
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self._patches:
            patch.stop()

    def _count(self, name, path, data=b""):
        self.log.append((name, str(path)))
        if len(self.log) != self._at:
            return
        if self._error is not None:
            if name == "close":  # the descriptor is gone all the same
                self._real["close"](path)
            raise OSError(self._error, os.strerror(self._error))
        if self._half and name == "write":
            self._real["write"](self._half_of, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def _open(self, path, *arguments, **keywords):
        self._count("open", path)
        descriptor = self._real["open"](path, *arguments, **keywords)
        self._paths[descriptor] = Path(path)
        return descriptor

    def _write(self, descriptor, data):
        self._half_of = descriptor
        self._count("write", self._paths[descriptor], data)
        if self._lossy:
            self._kept.setdefault(descriptor, []).append(bytes(data))
            return len(data)
        return self._real["write"](descriptor, data)

    def _fsync(self, descriptor):
        self._count("fsync", self._paths[descriptor])
        for data in self._kept.pop(descriptor, []):
            assert self._real["write"](descriptor, data) == len(data)

    def _close(self, descriptor):
        self._count("close", descriptor)
        self._real["close"](descriptor)

    def _rename(self, source, target):
        self._count("rename", target)
        self._real["rename"](source, target)

    def _mkdir(self, path, *arguments, **keywords):
        self._count("mkdir", path)
        self._real["mkdir"](path, *arguments, **keywords)

    def _unlink(self, path, **keywords):
        self._count("unlink", path)
        self._real["unlink"](path, **keywords)

    def _rmdir(self, path, **keywords):
        self._count("rmdir", path)
        self._real["rmdir"](path, **keywords)
