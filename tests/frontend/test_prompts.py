"""Tokens of requests in all the forms that servers take."""

import pytest

from grace_moe.embedded import embedded_model
from grace_moe.errors import ModelError
from grace_moe.frontend.prompts import PromptReader


@pytest.mark.parametrize(
    ("body", "ids", "size"),
    [
        ({"prompt": [5, 6, 7]}, [5, 6, 7], 3),
        ({"prompt": [[5, 6], [7]]}, [5, 6, 7], 3),
        ({"input_ids": [[5], [6]]}, [5, 6], 2),
        ({"prompt": [5, -1, 2**40, "x", None]}, [5], 1),
        ({"prompt": "abcdefgh"}, [], 2),
        ({"prompt": ["abcd", "abcd"]}, [], 2),
        ({"text": "abcdefgh"}, [], 2),
        (
            {"messages": [{"role": "user", "content": "abcdefgh"}, {"content": [{"type": "text", "text": "abcd"}, {"type": "image_url"}]}]},
            [],
            3,
        ),
        ({"messages": "abcd", "prompt": None}, [], 1),
        ({"messages": [1, {"content": 5}, {}], "prompt": {"a": 1}}, [], 1),
        ({}, [], 1),
    ],
)
def test_forms_of_a_prompt_without_a_tokenizer(body, ids, size):
    assert PromptReader(None).tokens(body) == (ids, size)


def test_text_is_read_with_the_models_tokenizer():
    reader = PromptReader(embedded_model())
    ids, size = reader.tokens({"prompt": "The experts are here."})
    assert len(ids) == size > 3
    assert reader.tokens({"messages": [{"content": "The experts are here."}]}) == (ids, size)


def test_a_model_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file; give the folder of the model that is served"):
        PromptReader(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        PromptReader(tmp_path)
