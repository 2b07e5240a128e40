"""A header of many keys is refused before safetensors makes objects of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from grace_moe.errors import TraceError
from grace_moe.files import check_safetensors


def test_the_size_of_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": np.zeros(3)}))
    assert check_safetensors(path, TraceError) == path.stat().st_size


@pytest.mark.parametrize("data", [b"", b"1234", b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{}"])
def test_what_is_no_such_file_is_left_to_safetensors(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert check_safetensors(tmp_path / "a", TraceError) == len(data)


def test_many_keys(tmp_path):
    header = json.dumps({"__metadata__": {str(i): "" for i in range(200_000)}}, separators=(",", ":")).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(TraceError, match="header: asks for 62 MiB of memory"):
        check_safetensors(tmp_path / "a", TraceError)
