"""An input from samples: a pure function of seed, target and number.

The numbers that decide are drawn for 1024 inputs at once, which is many times as fast as a
generator for each.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1024  # inputs that share a generator
DRAWS = 40  # whole numbers for one input
POOL = 1 << 16  # random bytes for the inputs of a block
LONGEST = 256  # bytes that are put in at once

Draw = Callable[[], int]


class Dice(NamedTuple):
    """What decides on one input: ``draw`` gives whole numbers below 2^62."""

    draw: Draw
    pool: bytes

    def below(self, n: int) -> int:
        return self.draw() % n

    def noise(self) -> bytes:
        start = self.draw() % (POOL - LONGEST)
        return self.pool[start : start + self.draw() % (LONGEST + 1)]


def dice(seed: int, target: str, block: int) -> Iterator[Dice]:
    """The dice of the inputs ``block * BLOCK`` and on."""
    rng = np.random.default_rng([seed, zlib.crc32(target.encode()), block])
    pool = rng.bytes(POOL)
    for row in rng.integers(0, 1 << 62, (BLOCK, DRAWS)).tolist():
        yield Dice(cycle(row).__next__, pool)  # over again, where an input takes very many


# Bytes

EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, 1023, 1024, 32767, 32768, 65535,
         65536, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
         (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
WORDS = (b"nan", b"inf", b"-1", b"1e999", b"0", b",", b":", b"\n", b"\0", b'"', b"{", b"[", b"(",
         b"'", b"#", b"\xff\xfe", b"\xf0\x9f\x98\x80", b"999999999999999999999", b"1_0", b" ",
         b"null", b"True", b"-", b"=", b"__class__")  # fmt: skip


def _flip(data: bytearray, other: bytes, dice: Dice) -> None:
    for _ in range(1 + dice.below(5)):
        bit = dice.below(8 * len(data)) if data else 0
        if data:
            data[bit // 8] ^= 1 << bit % 8


def _cut(data: bytearray, other: bytes, dice: Dice) -> None:
    del data[dice.below(len(data) + 1) :]


def _drop(data: bytearray, other: bytes, dice: Dice) -> None:
    start = dice.below(len(data) + 1)
    del data[start : start + 1 + dice.below(16)]


def _repeat(data: bytearray, other: bytes, dice: Dice) -> None:
    start = dice.below(len(data) + 1)
    piece = data[start : start + 1 + dice.below(LONGEST)]
    data[start:start] = piece * (1 + dice.below(4))


def _splice(data: bytearray, other: bytes, dice: Dice) -> None:
    at = dice.below(len(data) + 1)
    start = at if dice.below(2) else dice.below(len(other) + 1)
    data[at:] = other[start:]


def _edge(data: bytearray, other: bytes, dice: Dice) -> None:
    """A length, a count or an offset becomes one at the edge of what it can be."""
    size = 1 << dice.below(4)
    value = EDGES[dice.below(len(EDGES))] % (1 << 8 * size)
    at = dice.below(max(1, len(data) - size + 1))
    if dice.below(2):
        at -= at % size
    data[at : at + size] = value.to_bytes(size, "big" if dice.below(4) == 0 else "little")


def _nudge(data: bytearray, other: bytes, dice: Dice) -> None:
    """A field becomes a little more or less."""
    size = 1 << dice.below(4)
    at = dice.below(max(1, len(data) - size + 1))
    value = int.from_bytes(data[at : at + size], "little") + dice.below(9) - 4
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _noise(data: bytearray, other: bytes, dice: Dice) -> None:
    at, noise = dice.below(len(data) + 1), dice.noise()
    data[at : at + (len(noise) if dice.below(2) else 0)] = noise


def _word(data: bytearray, other: bytes, dice: Dice) -> None:
    at, word = dice.below(len(data) + 1), WORDS[dice.below(len(WORDS))]
    data[at : at + (len(word) if dice.below(2) else 0)] = word


WAYS = (_flip, _flip, _flip, _edge, _edge, _edge, _nudge, _nudge, _cut, _drop, _repeat, _splice,
        _noise, _word)  # fmt: skip


def changed(sample: bytes, other: bytes, dice: Dice) -> bytearray:
    """``sample`` with one to three changes; ``other`` is what may be grafted on."""
    data = bytearray(sample)
    for _ in range(1 + dice.below(3)):
        WAYS[dice.below(len(WAYS))](data, other, dice)
    return data


# JSON

# As text: what is put in may be changed next, and must not be the next one's.
VALUES = ("null", "true", "false", "0", "1", "-1", "2", "1.5", "-0.0", "1e308", "NaN", "Infinity",
          "2147483648", "1099511627776", "9223372036854775808", "1" + 20 * "0", "1" + 400 * "0",
          '""', '"x"', '"\\u0000"', '"\\ud800"', '"0"', '"null"', "[]", "{}", "[[]]", "[null]",
          "[0, 1]", '{"a": 1}', '{"values": {}}', f'"{300 * "x"}"')  # fmt: skip


def reshaped(sample: bytes, other: bytes, dice: Dice) -> bytearray:
    """The JSON ``sample`` with one to three values changed, removed, or put elsewhere."""
    root = [json.loads(sample)]
    for _ in range(1 + dice.below(3)):
        at: Any = root
        key: Any = 0
        while isinstance(at[key], (dict, list)) and at[key] and dice.below(5):
            at = at[key]
            keys = list(at) if isinstance(at, dict) else range(len(at))
            key = keys[dice.below(len(keys))]
        way = dice.below(6)
        if way == 0 and at is not root:
            del at[key]
        elif way == 1:
            at[key] = [at[key]]
        elif way == 2:
            at[key] = json.loads(other)
        elif way == 3 and isinstance(at[key], (int, float)):
            at[key] += dice.below(9) - 4
        else:
            at[key] = json.loads(VALUES[dice.below(len(VALUES))])
    return bytearray(json.dumps(root[0]).encode())
