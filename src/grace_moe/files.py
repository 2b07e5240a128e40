"""Reading with bounds and writing whole: every file of ours goes through here."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from grace_moe.errors import GraceError, InputFileError

MAX_JSON_BYTES = 256 * 2**20


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename: readers see the old file or the new one, whole.

    Raises:
        GraceError: the folder is missing, or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise GraceError(f"{path}: can't be written: {error.strerror or error}; check the folder and the disk") from error


def read_json(path: Path, kind: type[InputFileError]) -> Any:
    """Parse a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        InputFileError: (of the given kind) missing, too large, or not JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise kind(str(path), "size", f"{size} bytes is over the limit of {MAX_JSON_BYTES}", "is it the right file?")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise kind(str(path), "file", str(error.strerror), "check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise kind(str(path), "file", f"not valid JSON ({error})", "write it again: it is damaged or of another kind") from error


def dump_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, two spaces, a final newline."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
