"""Seeded damage to files: bytes, numbers and chunks, also inside archives whose checksums stay right."""

from __future__ import annotations

import io
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence

NUMBERS = (b"0", b"-1", b"1e999", b"4294967296", b"9223372036854775807", b"-9223372036854775809", b"99999999999999999999999", b"1.5")
WORDS = (b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"\xff\xfe", b"\x00", b"[" * 50, b'"\\ud800"', b"\x1b[31m", b"-", b",", b":")
BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01")
MAX_BYTES = 2**20

Parts = list[bytes]


def mutated(rng: random.Random, seeds: Sequence[Parts]) -> Parts:
    """One of the seeds' parts, damaged in one to four places."""
    parts = list(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        at = rng.randrange(len(parts))
        parts[at] = rng.choice(_DAMAGES)(rng, parts[at], rng.choice(seeds))[:MAX_BYTES]
    return parts


def _place(rng: random.Random, data: bytes, most: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, most))


def _overwrite(rng: random.Random, data: bytes, _: Parts) -> bytes:
    start, end = _place(rng, data, 8)
    return data[:start] + bytes(rng.randrange(256) for _ in range(end - start)) + data[end:]


def _fill(rng: random.Random, data: bytes, _: Parts) -> bytes:
    start, _ = _place(rng, data)
    width = rng.choice((1, 2, 4, 8))
    return data[:start] + rng.choice(BYTES) * width + data[start + width :]


def _number(rng: random.Random, data: bytes, _: Parts) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:65_536]))
    if not found:
        return data
    number = rng.choice(found)
    return data[: number.start()] + rng.choice(NUMBERS) + data[number.end() :]


def _word(rng: random.Random, data: bytes, _: Parts) -> bytes:
    start, end = _place(rng, data, 8)
    return data[:start] + rng.choice(WORDS) + data[rng.choice((start, end)) :]


def _cut(rng: random.Random, data: bytes, _: Parts) -> bytes:
    start, end = _place(rng, data, 1 + len(data) // 2)
    return rng.choice((data[:start], data[:start] + data[end:]))


def _repeat(rng: random.Random, data: bytes, _: Parts) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + data[start:end] * rng.choice((2, 3, 100, 10_000)) + data[end:]


def _splice(rng: random.Random, data: bytes, other: Parts) -> bytes:
    piece = rng.choice(other)
    return data[: rng.randrange(len(data) + 1)] + piece[rng.randrange(len(piece) + 1) :]


_DAMAGES: tuple[Callable[[random.Random, bytes, Parts], bytes], ...] = (
    *(_overwrite, _fill, _number, _number, _word, _cut, _repeat, _splice),
)


def unzip(data: bytes) -> Parts:
    """Name and bytes of each member, in turn."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [part for name in archive.namelist() for part in (name.encode(), archive.read(name))]


def rezip(parts: Parts) -> bytes:
    """An archive of these members, with right checksums; compressed where a member is an even number of bytes long."""
    return _archive(parts, lambda data: zipfile.ZIP_STORED if len(data) % 2 else zipfile.ZIP_DEFLATED)


def rezip_stored(parts: Parts) -> bytes:
    """An archive of these members as they are."""
    return _archive(parts, lambda _: zipfile.ZIP_STORED)


def _archive(parts: Parts, method: Callable[[bytes], int]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in zip(parts[::2], parts[1::2], strict=True):
            archive.writestr(zipfile.ZipInfo(name[:100].decode(errors="replace") or "_"), data, method(data))
    return stream.getvalue()


def split_safetensors(data: bytes) -> Parts:
    """Header and numbers."""
    size = int.from_bytes(data[:8], "little")
    return [data[8 : 8 + size], data[8 + size :]]


def join_safetensors(parts: Parts) -> bytes:
    """The file of a header and numbers, with the header's right size."""
    header, numbers = parts
    return len(header).to_bytes(8, "little") + header + numbers


def whole(data: bytes) -> Parts:
    """A file in one part."""
    return [data]


def join(parts: Parts) -> bytes:
    """The file of its parts."""
    return b"".join(parts)
