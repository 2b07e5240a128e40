"""`python -m tests.families`: every family, or some; a line each, and a page of all."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.families.examination import examine
from tests.families.names import FAMILIES, LACKING
from tests.families.page import page
from tests.families.tiny import build
from tests.rank_pool import RankPool


def main() -> int:
    """Run, print, and say with the exit code whether all was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="of tests/families/names.py; all without it")
    parser.add_argument("--page", type=Path, help="write the table there, as Markdown")
    parser.add_argument("--keep", type=Path, help="a file of what was seen: families that it has are not run again")
    options = parser.parse_args()
    seen: dict[str, Any] = json.loads(options.keep.read_text()) if options.keep is not None and options.keep.exists() else {}
    pool = RankPool()
    for family in options.families or FAMILIES:
        if family in LACKING or "right" in seen.get(family, {}):
            continue
        seen[family] = _outcome(family, pool)
        sys.stdout.write(f"{family}: {seen[family]}\n")
        sys.stdout.flush()
        if options.keep is not None:
            options.keep.write_text(json.dumps(seen, indent=1))
    pool.close()
    if options.page is not None:
        options.page.write_text(page(seen))
    return 0 if all(outcome.get("right") for outcome in seen.values()) else 1


def _outcome(family: str, pool: RankPool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            outcome = examine(build(family, Path(scratch) / family), pool, Path(scratch))
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error.args[0] if error.args else error}"[:300]}
    return asdict(outcome) | {"right": outcome.right}


if __name__ == "__main__":
    sys.exit(main())
