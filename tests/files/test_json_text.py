"""JSON from outside: one line for whatever is not such JSON, in bounded memory."""

import json
import tracemalloc
from contextlib import suppress

import pytest

from grace_moe.errors import InputFileError, PlacementError
from grace_moe.files import dump_json, json_text, read_json


def test_the_same_value_has_one_text():
    assert dump_json({"b": 1, "a": [0.1, "é"]}) == dump_json({"a": [0.1, "é"], "b": 1})
    assert dump_json({"b": None}) == b'{\n  "b": null\n}\n'
    with pytest.raises(ValueError):
        dump_json(float("nan"))


HOSTILE_TEXTS = {
    "empty": b"",
    "truncated": b'{"nodes": [',
    "not UTF-8": b'"\xff\xfe\xfa"',
    "nested deeply": b"[" * 200_000,
    "nested deeply, closed": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"a": NaN}',
    "Infinity": b"[-Infinity]",
    "float out of range": b"[1e999]",
    "integer of 5000 digits": b"9" * 5000,
    "half a surrogate pair": b'["\\uD800"]',
    "two values": b"{} {}",
    "null bytes": b"\0" * 64,
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_what_is_not_json_is_an_input_error_of_one_line(tmp_path, name):
    path = tmp_path / "a.json"
    path.write_bytes(HOSTILE_TEXTS[name])
    with pytest.raises(PlacementError, match=r"a\.json: file: not valid JSON .*; write it again") as error:
        read_json(path, PlacementError)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_a_file_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_JSON_BYTES", 10)
    path = tmp_path / "large.json"
    path.write_bytes(json.dumps("x" * 8).encode())
    assert read_json(path, InputFileError) == "x" * 8
    path.write_bytes(json.dumps("x" * 9).encode())
    with pytest.raises(InputFileError, match="over the limit of 10 bytes; is it the right file"):
        read_json(path, InputFileError)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": 1, "a": 1}}]'])
def test_a_key_twice_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputFileError, match="the key 'a' is there twice"):
        read_json(tmp_path / "a.json", InputFileError)


DENSE = {
    "lists": "[" + "[]," * 2**20 + "0]",
    "short lists": "[" + "[3]," * 2**20 + "0]",
    "objects": "[" + "{}," * 2**20 + "0]",
    "small objects": "[" + '{"a":1},' * 2**18 + "0]",
    "keys": "{" + ",".join(f'"{i}":1' for i in range(2**18)) + "}",
}


@pytest.mark.parametrize("kind", DENSE)
def test_memory_is_bounded_by_the_size(tmp_path, kind):
    path = tmp_path / "a.json"
    path.write_text(DENSE[kind])
    tracemalloc.start()
    try:
        with suppress(InputFileError):
            read_json(path, InputFileError)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**26 + 20 * path.stat().st_size


def test_lists_without_end_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "a.json").write_text(DENSE["lists"])
    with pytest.raises(InputFileError, match="asks for 96 MiB of memory, and a file of 3145731 bytes gets 54 MiB"):
        read_json(tmp_path / "a.json", InputFileError)


def test_a_name_that_is_no_text_is_written_as_text():
    assert dump_json("a\udcffb") == b'"a?b"\n'
