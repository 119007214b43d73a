"""Checkpoints on disk: their files, the manifest that vouches for them, the folder of all.

::

    CHECKPOINTS/                     the folder of all checkpoints of a run
        step-00000100/
            manifest.json            written last; names every file with its size and checksum
            server-0.safetensors     one for each server
            server-1.safetensors
        .step-00000200.tmp/          one that is being written
"""

from __future__ import annotations

from psgrad.checkpoint.files import FileRecord, TensorFile, check_file, open_tensors, write_tensors
from psgrad.checkpoint.manifest import Manifest
from psgrad.checkpoint.opened import Checkpoint, found, newest, verify
from psgrad.checkpoint.store import Store
from psgrad.checkpoint.writer import InlineWriter, ThreadWriter, Writer

__all__ = [
    "Checkpoint",
    "FileRecord",
    "InlineWriter",
    "Manifest",
    "Store",
    "TensorFile",
    "ThreadWriter",
    "Writer",
    "check_file",
    "found",
    "newest",
    "open_tensors",
    "verify",
    "write_tensors",
]
