"""Long texts of the page, compressed: the library that draws the figures is 4.8 MB as it comes, and 1.8 MB so."""

from __future__ import annotations

import base64
import zlib

# `<` could begin a tag, also inside a script element; `,` is not in the alphabet.
_SAFE = str.maketrans("<", ",")


def packed(name: str, text: str) -> str:
    """An element of an id that holds a text: deflated, in base 85. `page.js` unpacks it."""
    data = zlib.compress(text.encode("utf-8", errors="replace"), 9)
    code = base64.b85encode(data, pad=True).decode().translate(_SAFE)
    return f'<script type="text/plain" id="{name}" data-bytes="{len(data)}">{code}</script>'
