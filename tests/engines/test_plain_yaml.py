"""YAML from outside: plain values, or one line."""

import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines.plain_yaml import parse_yaml
from grace_moe.errors import PlacementError

scalars = st.integers(-(10**17), 10**17) | st.sampled_from(["a", "b c", None])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(-(10**17), 10**17) | st.just("k"), inner, max_size=3)
)


@given(value=values, flow=st.sampled_from([True, False, None]))
def test_what_yaml_wrote_is_read(value, flow):
    assert parse_yaml(yaml.safe_dump(value, default_flow_style=flow).encode(), PlacementError, "a.yaml") == value


@given(data=st.binary(max_size=60) | st.text(alphabet="[]{}:,-!&*'\"\n 0a#|>%?\t", max_size=60).map(str.encode))
def test_other_bytes_are_one_line(data):
    problem = "one line"
    try:
        parse_yaml(data, PlacementError, "a.yaml")
    except PlacementError as error:
        problem = str(error)
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x", "references are not taken"),
        ("a: *x", "references are not taken|undefined alias"),
        ("!!python/object/apply:os.system [ls]", "tags are not taken"),
        ("a: 1\na: 2", "a is no key, or is there twice"),
        ("[1]: 2", r"\[1\] is no key"),
        ("a: 1\n---\na: 2", "not one document"),
        ("", "not one document"),
        ("[" * 40 + "]" * 40, "more than 16 levels"),
        ("[" * 100_000, "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_not_taken(text, says):
    with pytest.raises(PlacementError, match=rf"^a\.yaml: file: not valid YAML \(.*{says}|{says}"):
        parse_yaml(text.encode(), PlacementError, "a.yaml")


@pytest.mark.parametrize("text", ["2001-99-99", "1:99:99", "0x", "0b2", "1_000", "9" * 5000, "yes", "1e5", "'7'", "=", "<<"])
def test_scalars_that_are_no_whole_numbers_are_text(text):
    assert parse_yaml(f"a: {text}".encode(), PlacementError, "a.yaml") == {"a": text.strip("'")}


def test_memory_is_a_few_times_the_files():
    data = b"a: [" + b"7, " * 40_000 + b"7]"
    tracemalloc.start()
    try:
        assert len(parse_yaml(data, PlacementError, "a.yaml")["a"]) == 40_001
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
    finally:
        tracemalloc.stop()
