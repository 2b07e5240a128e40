"""Reading with bounds and writing whole: every file of ours goes through here."""

import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from grace_moe.errors import GraceError, InputFileError

MAX_JSON_BYTES = 256 * 2**20


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename: readers see the old file or the new one, whole.

    A link is followed; a pipe or device (`/dev/stdout`, `/dev/null`) is written into, never replaced.

    Raises:
        GraceError: the folder is missing, or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        temporary = None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        problem = getattr(error, "strerror", None) or error
        raise GraceError(f"{path}: can't be written: {problem}; check the folder and the disk") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def read_json(path: Path, kind: type[InputFileError]) -> Any:
    """Parse a JSON file of at most `MAX_JSON_BYTES`, of finite numbers and whole characters.

    Raises:
        InputFileError: (of the given kind) missing, too large, or not JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise kind(str(path), "size", f"over the limit of {MAX_JSON_BYTES} bytes", "is it the right file?")
        value = json.loads(data, parse_constant=_refuse, parse_float=_finite)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can't be written again
        return value
    except OSError as error:
        raise kind(str(path), "file", str(error.strerror), "check the path") from error
    except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are not UTF-8, and integers of 4,300 digits
        raise kind(str(path), "file", f"not valid JSON ({error})", "write it again: it is damaged or of another kind") from error


def dump_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, two spaces, a final newline."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is out of range")
    return number
