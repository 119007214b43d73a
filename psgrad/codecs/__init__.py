"""Codecs: how gradients and parameters are written when float32 is too much.

A codec is chosen by a spec: its name, then options, the first one by position::

    none    int8    int4:block=64    int8:rounding=stochastic    topk:0.01    topk:0.001+int8

``+VALUES`` says how a sparse codec writes the values that it keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from psgrad.codecs.adaptive import Adaptive, FastestChoice
from psgrad.codecs.base import Bytes, Codec, Key, Opened, Workspace
from psgrad.codecs.blocks import Int4, Int8
from psgrad.codecs.choice import Always, Choice, everywhere
from psgrad.codecs.feedback import choose
from psgrad.codecs.halves import BF16, FP16
from psgrad.codecs.qsgd import QSGD
from psgrad.codecs.randk import RandK
from psgrad.codecs.raw import Raw
from psgrad.codecs.sign import Sign
from psgrad.codecs.ternary import Ternary
from psgrad.codecs.thresholds import Thresholds
from psgrad.codecs.topk import Settled, TopK
from psgrad.codecs.zstd import check
from psgrad.errors import ConfigError, unknown_name
from psgrad.layout import Chunk, Layout

__all__ = [
    "CODECS",
    "DIFFERENCES",
    "PULL_CODECS",
    "Bytes",
    "Codec",
    "Compression",
    "Key",
    "Opened",
    "Raw",
    "Workspace",
    "parse",
    "spec",
]

CODECS: Final[Mapping[str, type[Codec]]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (Raw, FP16, BF16, Int8, Int4, QSGD, Ternary, Sign, TopK, RandK, Adaptive)
    }
)
"""The names of the command line."""

DIFFERENCES: Final = ("topk", "randk", "sign")
"""Codecs of pulls that carry differences to what a worker holds: contractions, so it converges."""

PULL_CODECS: Final = ("none", "fp16", "bf16", "int8", "int4", *DIFFERENCES)
"""What parameters may travel as; quantizers of absolute values need no state."""


@dataclass(frozen=True)
class Compression:
    """How a run's chunks travel. ``push`` and ``pull`` are None for bare float32."""

    push: Codec | None = None
    pull: Codec | None = None
    feedback: str = "none"
    zstd: str = "off"

    @property
    def differences(self) -> Codec | None:
        """The codec of pulls, where it is one of differences."""
        return self.pull if self.pull is not None and self.pull.name in DIFFERENCES else None

    @classmethod
    def of(cls, codec: str, pull_codec: str, feedback: str, zstd: str) -> Compression:
        """Reads two specs, the name of a feedback and a mode of the zstd stage.

        Raises ``ConfigError`` where one is unknown, or cannot be used in its place.
        """
        push, pull = parse(codec), parse(pull_codec)
        if pull.name not in PULL_CODECS:
            raise ConfigError(
                f"pull codec {pull_codec!r} is for gradients: its error is not made good in "
                f"parameters; use one of {', '.join(PULL_CODECS)}"
            )
        if isinstance(pull, TopK) and pull.scope != "chunk":
            raise ConfigError(
                f"pull codec {pull_codec!r}: the scope of pulls is the chunk, got {pull.scope}"
            )
        check(zstd)
        return cls(
            None if push.name == "none" else push,
            None if pull.name == "none" else pull,
            choose(feedback, push),
            zstd,
        )


def choice(
    codec: Codec, layout: Layout, chunks: Sequence[Chunk], now: Callable[[], float]
) -> Choice:
    """What a worker settles for ``codec`` before it encodes ``chunks``; ``now`` is in seconds."""
    if isinstance(codec, Adaptive):
        return FastestChoice(codec, chunks, now)
    if isinstance(codec, TopK) and codec.scope == "tensor":
        return Always({chunk.index: _by_tensor(codec, layout, chunk) for chunk in chunks})
    if isinstance(codec, TopK) and (codec.scope == "global" or codec.select == "threshold"):
        return Thresholds(codec, chunks)
    return everywhere(codec, chunks)


def _by_tensor(codec: TopK, layout: Layout, chunk: Chunk) -> Settled:
    starts = tuple(
        max(0, tensor.start - chunk.start)
        for tensor in layout.tensors
        if tensor.start < chunk.stop and tensor.stop > chunk.start
    )
    return Settled.of(codec, starts=starts)


def parse(text: str) -> Codec:
    """The codec that ``text`` specifies.

    Raises ``ConfigError`` for an unknown name (with the nearest), an unknown option, or a value
    that the option cannot have.
    """
    head, plus, values = text.strip().partition("+")
    name, colon, arguments = head.partition(":")
    if name not in CODECS:
        raise ConfigError(unknown_name("codec", name, CODECS))
    kind = CODECS[name]
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given: dict[str, str] = {}
    for i, argument in enumerate(arguments.split(",") if colon else ()):
        key, equals, value = argument.partition("=")
        if not equals:
            if i > 0 or not names:
                raise ConfigError(
                    f"codec {text!r}: {argument!r} is not an option; write "
                    f"{name}:option=value with one of: {', '.join(names) or 'none'}"
                )
            key, value = names[0], argument
        given[key.strip()] = value.strip()
    if plus:
        given["values"] = values.strip()
    hints = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in names:
            raise ConfigError(f"codec {text!r}: {unknown_name(f'option of {name}', key, names)}")
    return kind(**{key: _convert(text, key, value, hints[key]) for key, value in given.items()})


def spec(codec: Codec) -> str:
    """The spec that gives ``codec`` back: options that are not at their default, by name."""
    options = [
        f"{field.name}={getattr(codec, field.name)}"
        for field in dataclasses.fields(codec)  # type: ignore[arg-type]
        if getattr(codec, field.name) != field.default
    ]
    return codec.name + (":" + ",".join(options) if options else "")


def _convert(text: str, key: str, value: str, hint: str) -> int | float | str:
    if hint == "str":
        return value
    try:
        return int(value) if hint == "int" else float(value)
    except ValueError:
        what = "a whole number" if hint == "int" else "a number"
        raise ConfigError(f"codec {text!r}: {key} must be {what}, got {value!r}") from None
