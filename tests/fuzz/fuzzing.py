"""One process that damages files and reads them, and measures what that takes."""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from grace_moe.errors import GraceError
from tests.fuzz.mutations import join, mutated, whole
from tests.fuzz.targets import TARGETS, Target

FREE_BYTES, BYTES_PER_BYTE = 64 * 2**20, 20
"""Memory that reading may take: this, and so many times the file's size."""


@dataclass
class Found:
    """What came of a run."""

    examples: int = 0
    read: int = 0
    """Files that were read, damaged as they were."""
    refused: Counter[str] = field(default_factory=Counter)
    most_memory: int = 0
    """Bytes that reading a file took at most."""
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """One line of figures."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.refused.most_common())
        memory = f"at most {self.most_memory / 2**20:.1f} MiB"
        return f"{name:<13}{self.examples:>9,} files, {self.read:,} read, refused: {kinds}; {memory}; {len(self.failures)} failures"


def fuzz(name: str, *, seed: int = 0, first: int = 0, examples: int | None = None, seconds: float | None = None) -> Found:
    """Run a target for so many examples or seconds; example i of a seed is always the same bytes."""
    target, found = TARGETS[name], Found()
    seeds = target.seeds()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a sum that wraps, a number that is no number
        path = Path(folder) / f"f{target.ending}"
        for data in seeds:
            path.write_bytes(data)
            target.read(path)  # whole files are read; what is imported first is imported here
        example, ends = first, None if seconds is None else time.monotonic() + seconds
        while (examples is None or example < first + examples) and (ends is None or time.monotonic() < ends):
            path.write_bytes(damaged(target, seeds, random.Random(f"{name} {seed} {example}")))
            _try(found, target, path, f"{name} --seed {seed} --example {example}")
            example += 1
    return found


def damaged(target: Target, seeds: list[bytes], rng: random.Random) -> bytes:
    """A file made from the seeds: its parts damaged and put together rightly, or the whole of it damaged."""
    split, put_together = (target.split, target.join) if rng.random() < 0.7 else (whole, join)
    return put_together(mutated(rng, [split(data) for data in seeds]))


def _try(found: Found, target: Target, path: Path, example: str) -> None:
    size, before = path.stat().st_size, _forget_peak()
    found.examples += 1
    try:
        target.read(path)
        found.read += 1
    except GraceError as error:
        found.refused[type(error).__name__] += 1
        text = str(error)
        if len(text.splitlines()) != 1 or len(text) > 2000:
            found.failures.append(f"{example}: the message is no short line: {text[:200]!r}")
    except Exception as error:
        found.failures.append(f"{example}: {type(error).__name__}: {error}"[:500])
    taken = max(0, _status("VmHWM") - before)
    found.most_memory = max(found.most_memory, taken)
    if taken > FREE_BYTES + BYTES_PER_BYTE * size:
        found.failures.append(f"{example}: took {taken / 2**20:.0f} MiB for a file of {size} bytes")


def _forget_peak() -> int:
    """Let the kernel forget the most memory that this process had. Returns what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
