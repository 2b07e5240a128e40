"""What `run` is asked, and how completions are printed: in order, as they come."""

import io
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cli.completions import CompletionPrinter
from grace_moe.cli.progress import TokenCount
from grace_moe.cli.requests import STANDARD_INPUT, prompt_requests, read_prompts, too_long
from grace_moe.embedded import embedded_model
from grace_moe.errors import ModelError, UsageError
from grace_moe.runtime.job.events import Said
from grace_moe.runtime.job.generation import Request
from grace_moe.runtime.model.description import checkpoint_dtype, load_config, load_generation_config, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(embedded_model()))


def test_prompts_are_lines_of_a_file_or_of_standard_input(tmp_path, monkeypatch):
    (tmp_path / "prompts").write_text("One\n\n  Two \n")
    assert read_prompts(tmp_path / "prompts") == ("One", "  Two ")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Three \xff\n")))
    assert read_prompts(STANDARD_INPUT) == ("Three \N{REPLACEMENT CHARACTER}",)
    with pytest.raises(UsageError, match="standard input: no prompt in it; write one a line"):
        read_prompts(STANDARD_INPUT)
    with pytest.raises(UsageError, match="--prompts: /absent: No such file"):
        read_prompts(tmp_path.joinpath("/absent"))


def test_a_chat_is_the_models_own_template(tokenizer, monkeypatch):
    with pytest.raises(ModelError, match="chat_template: the model has none; leave --chat out"):
        prompt_requests(["Hello"], tokenizer, chat=True)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    (request,) = prompt_requests(["Hello"], tokenizer, chat=True)
    assert tokenizer.decode(request.prompt) == "[user] Hello\n[assistant]"


def test_a_warning_beyond_the_models_positions():
    config = load_config(str(embedded_model()))
    requests = [Request(request_id=0, prompt=(5,) * 1000)]
    assert too_long(requests, 24, config) is None
    assert "max_position_embeddings is 1,024, and a prompt with its --new-tokens has up to 1,025" in too_long(requests, 25, config)


def test_dtype_and_end_of_sequence_are_the_checkpoints(tmp_path):
    config = load_config(str(embedded_model()))
    assert checkpoint_dtype(config) == "bfloat16"
    assert load_generation_config(str(tmp_path), config).eos_token_id == config.eos_token_id
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load_generation_config(str(tmp_path), config).eos_token_id == [7, 8]
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"generation_config\.json: can't be read"):
        load_generation_config(str(tmp_path), config)


def test_completions_are_printed_in_order_as_they_come(tokenizer, capsys):
    texts = {0: "The experts are here", 1: "Once upon a time"}
    tokens = {number: tokenizer.encode(text) for number, text in texts.items()}
    requests = [Request(request_id=number, prompt=tuple(tokenizer.encode("So: "))) for number in texts]
    printer = CompletionPrinter(requests, tokenizer, from_text=False)
    printer.add([Said(1, token, index == len(tokens[1]) - 1) for index, token in enumerate(tokens[1])])
    assert capsys.readouterr().out == ""  # the first has said nothing yet
    printer.add([Said(0, token, False) for token in tokens[0][:-1]])
    begun = capsys.readouterr().out
    assert begun.startswith("So: The ")
    assert printer.in_a_line
    printer.add([Said(0, tokens[0][-1], True)])
    assert begun + capsys.readouterr().out == "So: The experts are here\n\nSo: Once upon a time\n\n"
    assert not printer.in_a_line


def test_a_prompt_that_was_cut_from_text_shows_its_end(tokenizer, capsys):
    request = Request(request_id=4, prompt=tuple(tokenizer.encode("word " * 100 + "the end")))
    completion = SimpleNamespace(request_id=4, tokens=tuple(tokenizer.encode("again")))
    CompletionPrinter([request], tokenizer, from_text=True).add_whole([completion])
    out = capsys.readouterr().out
    assert out.startswith("[4] ... ")
    assert out.endswith("the endagain\n\n")
    assert len(out) < 80


def test_long_work_tells_how_far_it_is(monkeypatch):
    told, now = [], [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    count = TokenCount(told.append, total=1_100)
    count.restart("flat")
    for _ in range(25):
        now[0] += 1
        count.add(10)
    assert told == ["flat: 100 of at most 1,100 tokens, 10.0 a second", "flat: 200 of at most 1,100 tokens, 10.0 a second"]
    now[0] += 10
    count.add(10, quiet=True)
    assert len(told) == 2
    count.add(10)
    assert told[2].startswith("flat: 270 of")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "nan"], "nan is not a number that is finite"),
        (["--temperature", "inf"], "inf is not a number that is finite"),
        (["--temperature", "1e-40"], "--temperature: 1e-40 is under 0.001; give 0, which takes the likeliest"),
        (["--temperature", "1", "--top-p", "nan"], "nan is not a number that is finite"),
        (["--timeout", "inf"], "inf is not in the range"),
        (["--stop", ""], "--stop: an empty text ends nothing; leave it out"),
    ],
)
def test_options_that_mean_nothing_are_refused(call, words, said):
    code, out, err = call("run", "model", "--placement", "plan.json", "--local", "2x2", "--prompt", "x", *words)
    assert (code, out) == (2, "")
    assert said in err
