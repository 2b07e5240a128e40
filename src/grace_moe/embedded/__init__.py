"""The model that ships with the package, and text that it has not seen (see README.md beside this file)."""

from importlib.resources import files
from pathlib import Path

DOMAINS = ("prose", "code", "mathematics")


def embedded_model() -> Path:
    """Folder of the embedded model: configuration, weights and tokenizer."""
    return Path(str(files(__name__)))


def embedded_texts() -> dict[str, str]:
    """Held-out text of each domain."""
    return {domain: (embedded_model() / f"{domain}.txt").read_text(encoding="utf-8") for domain in DOMAINS}
