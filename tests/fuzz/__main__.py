"""`python -m tests.fuzz`: every reader for so many seconds, or one example again."""

from __future__ import annotations

import argparse
import resource
import sys
import time

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.targets import TARGETS

MOST_MEMORY = 16 * 2**30
"""Address space of the process: what asks for more fails at once instead of taking the machine."""


def main() -> int:
    """Run, print a line a reader, and say with the exit code whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)}; all without it")
    parser.add_argument("--seconds", type=float, default=600, help="for each reader")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the damage; by the clock without it")
    parser.add_argument("--example", type=int, help="run this one alone")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    failed = 0
    for name in options.readers or TARGETS:
        if options.example is None:
            found = fuzz(name, seed=options.seed, seconds=options.seconds)
        else:
            found = fuzz(name, seed=options.seed, first=options.example, examples=1)
        lines = [found.line(name), *(f"  python -m tests.fuzz {failure}" for failure in found.failures[:10])]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        failed += len(found.failures)
    return 1 if failed else 0


sys.exit(main())
