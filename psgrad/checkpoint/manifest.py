"""The manifest: what a checkpoint consists of, under a checksum of its own.

The file is JSON that begins with the checksum of everything behind it::

    {"checksum": "crc32:89abcdef",
     "files": [{"checksum": "crc32:...", "name": "server-0.safetensors", "nbytes": 4096}],
     "format": 1,
     "psgrad": "0.1.0",
     "state": {...},
     "step": 100}

A CRC-32 finds every flipped bit and every damage within 32 bits in a row. It does not keep out
somebody who wants to be believed; that is what the permissions of the folder are for.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from psgrad.checkpoint.files import FileRecord, check_record, checksum_text
from psgrad.checkpoint.strict_json import is_count, parse
from psgrad.errors import CheckpointError, shown
from psgrad.version import __version__

FORMAT: Final = 1
_BEGINNING: Final = re.compile(rb'\{"checksum": "(crc32:[0-9a-f]{8})",\n')
_KEYS: Final = frozenset(("files", "format", "psgrad", "state", "step"))
_RECORD_KEYS: Final = frozenset(("name", "nbytes", "checksum"))


@dataclass(frozen=True)
class Manifest:
    """``state`` is JSON: what is not a tensor. ``psgrad`` is the version that wrote it."""

    step: int
    files: tuple[FileRecord, ...]
    state: Mapping[str, Any]
    psgrad: str = __version__

    def __post_init__(self) -> None:
        """Raises ``CheckpointError`` for what a manifest cannot say."""
        if not is_count(self.step):
            raise CheckpointError(
                f"the step must be a whole number from 0 up, got {shown(self.step)}"
            )
        for record in self.files:
            check_record(record)
        names = [record.name for record in self.files]
        if len(set(names)) < len(names):
            raise CheckpointError(f"a file is there twice: {shown(names, 200)}")

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(record.nbytes for record in self.files)

    def to_bytes(self) -> bytes:
        """The file's content; raises ``ValueError`` or ``TypeError`` for a state that is not JSON.

        Equal manifests give equal bytes.
        """
        lines = {
            "files": [asdict(record) for record in self.files],
            "format": FORMAT,
            "psgrad": self.psgrad,
            "state": dict(self.state),
            "step": self.step,
        }
        texts = (
            f' "{key}": {json.dumps(value, sort_keys=True, allow_nan=False)}'
            for key, value in lines.items()
        )
        rest = (",\n".join(texts) + "}\n").encode()
        return b'{"checksum": "%s",\n' % checksum_text(zlib.crc32(rest)).encode() + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The inverse; raises ``CheckpointError`` for everything that ``to_bytes`` cannot give."""
        beginning = _BEGINNING.match(data)
        if beginning is None:
            raise CheckpointError("it does not begin with a checksum")
        rest = data[beginning.end() :]
        if checksum_text(zlib.crc32(rest)) != beginning[1].decode():
            raise CheckpointError("its checksum is not that of its content")
        try:
            return cls._of(parse(b"{" + rest))
        except ValueError as error:
            raise CheckpointError(f"it is not JSON: {error}") from error

    @classmethod
    def _of(cls, content: Any) -> Manifest:
        if not isinstance(content, dict) or "format" not in content:
            raise CheckpointError("it has no format")
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise CheckpointError(
                f"it has format {shown(content['format'])}, this psgrad reads {FORMAT}; use the "
                f"version that wrote it: {shown(content.get('psgrad'))}"
            )
        if content.keys() != _KEYS:
            odd = sorted(content.keys() ^ _KEYS)
            raise CheckpointError(f"it lacks keys or has others: {shown(odd, 200)}")
        files, state, version = content["files"], content["state"], content["psgrad"]
        if not isinstance(state, dict) or not isinstance(version, str):
            raise CheckpointError("its state must be an object, its version a text")
        if not isinstance(files, list) or not all(
            isinstance(entry, dict) and entry.keys() == _RECORD_KEYS for entry in files
        ):
            raise CheckpointError("its files must be a list of name, nbytes and checksum")
        records = tuple(FileRecord(**entry) for entry in files)
        return cls(content["step"], records, state, version)
