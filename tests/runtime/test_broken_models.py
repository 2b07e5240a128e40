"""Model folders that are not whole, or not what they say: one line that names what is wrong, before a token is made."""

import json
import os
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from datetime import timedelta

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from grace_moe.errors import MismatchError, ModelError
from grace_moe.runtime.dispatch.rank_groups import make_groups
from grace_moe.runtime.job.generation import GenerationOptions, Request, generate
from grace_moe.runtime.model.checkpoint import checkpoint_files
from grace_moe.runtime.model.description import load_config, load_tokenizer
from grace_moe.runtime.model.loading import load_model, load_whole_model
from grace_moe.topology import Topology

from .conftest import EXPERTS, LAYERS, VOCABULARY, make_model, placement_of
from .test_architectures import ARCHITECTURES, SMALL

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
UP_PROJ = "model.layers.1.mlp.experts.5.up_proj.weight"


@pytest.fixture(scope="module")
def alone(device):
    """The group of a single rank, which this process is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield make_groups(Topology.parse("1x1"), timedelta(seconds=60))
    dist.destroy_process_group()


def test_groups_are_built_once(alone):
    again = make_groups(Topology.parse("1x1"), timedelta(seconds=60))
    assert (again.node, again.rail) == (alone.node, alone.rail)
    assert make_groups(Topology.parse("1x1"), timedelta(seconds=61)).node != alone.node


@pytest.fixture
def folder(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewrite(folder, change):
    """The folder with its tensors changed in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def everywhere(layers=LAYERS):
    return placement_of("1x1", lambda e: (0,), layers=layers)


def without(name):
    return lambda tensors: tensors.pop(name)


def shortened(name):
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


CHANGES = {
    "missing": (without(Q_PROJ), f"weights: missing {Q_PROJ}"),
    "an expert is missing": (without(UP_PROJ), f"weights: missing {UP_PROJ}"),
    "left over": (lambda t: t.update({"model.layers.1.extra": torch.ones(1)}), "weights: unexpected model.layers.1.extra"),
    "another shape": (shortened(Q_PROJ), rf"weights: of another shape {Q_PROJ} \(\[31, 32\] for \[32, 32\]\)"),
    "an expert of another shape": (shortened(UP_PROJ), rf"weights: of another shape {UP_PROJ} \(\[15, 32\] for \[16, 32\]\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_weight_is_accounted_for_however_the_model_is_loaded(folder, alone, change):
    """On one process, as for recording; placed; and by Transformers' own shards."""
    alter, says = CHANGES[change]
    path = rewrite(folder, alter)
    with pytest.raises(ModelError, match=says):
        load_whole_model(path)
    for dispatch in ("hierarchical", "vanilla"):
        with pytest.raises(ModelError, match=says):
            load_model(path, everywhere(), alone, dispatch=dispatch)


def test_what_a_checkpoint_may_lack_or_have_over(tmp_path, alone):
    """Tied weights are stored once; the buffers of old checkpoints are computed anew."""
    folder = make_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    path = rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    whole = load_whole_model(path)
    placed = load_model(path, everywhere(), alone, dispatch="flat").model
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(placed(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_a_layer_that_transformers_declares_ignorable_may_be_over(tmp_path):
    """DeepSeek-V3's checkpoint has a layer more, which predicts further tokens."""
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(**SMALL, **ARCHITECTURES["DeepseekV3"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    path = rewrite(tmp_path, lambda t: t.update({"model.layers.61.mlp.experts.0.up_proj.weight": torch.ones(16, 32)}))
    assert load_whole_model(path).config.num_hidden_layers == 2


def test_a_token_outside_the_vocabulary_is_told(tiny_model):
    model = load_whole_model(str(tiny_model))
    with pytest.raises(ModelError, match=f"token {VOCABULARY} of a prompt is not one of {VOCABULARY}"):
        generate(model, [Request(request_id=0, prompt=(5, VOCABULARY))], GenerationOptions(new_tokens=1))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_pipes_and_devices_are_refused_at_once(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=f"{name}: not a file"):
        load_whole_model(str(folder))


def test_a_plan_must_have_the_models_layers(tiny_model, alone):
    with pytest.raises(MismatchError, match=f"layers: layer {LAYERS - 1} of .* is not placed; plan on a trace of this model"):
        load_model(str(tiny_model), everywhere(LAYERS - 1), alone, dispatch="flat")
    with pytest.raises(MismatchError, match=f"layers: layer {LAYERS} is placed, .* has none; plan on a trace of this model"):
        load_model(str(tiny_model), everywhere(LAYERS + 1), alone, dispatch="flat")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "C:x.safetensors", ""]
)
def test_an_index_names_no_file_outside_its_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ModelError, match=r"index.json: weight_map: .* is outside of the model's folder"):
        load_whole_model(str(folder))


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000, '{"weight_map": {"a": "no.safetensors"}}']
)
def test_a_damaged_index_is_one_line(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json|no\.safetensors") as caught:
        load_whole_model(str(folder))
    assert "\n" not in str(caught.value)


def test_shards_are_found_beside_their_index(folder):
    tensors = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert [file.name for file in checkpoint_files(folder)] == ["a.safetensors", "b.safetensors"]
    assert load_whole_model(str(folder)).num_parameters() == sum(t.numel() for t in tensors.values())


CONFIGS = {
    "text for a number": {"hidden_size": "many"},
    "no model type": {"model_type": 7},
    "a number of heads that does not divide": {"num_attention_heads": 0},
    "a list for experts": {"num_experts": [16]},
    "negative sizes": {"intermediate_size": -1},
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_wrong_config_is_one_line(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CONFIGS[change]))
    with pytest.raises(ModelError) as caught:
        load_whole_model(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", "\x00"])
def test_a_damaged_config_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        load_config(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"model": 3}', "[" * 100_000])
def test_a_damaged_tokenizer_is_one_line(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="tokenizer: can't be read") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_never_run_nor_offered(folder, capsys, monkeypatch):
    """A type that Transformers knows is loaded without the folder's code; another is refused. Nobody is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "own.py").write_text("raise SystemExit('the code of the folder was run')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    assert load_whole_model(str(folder)).config.num_experts == EXPERTS
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "model_type": "of_its_own"}))
    with pytest.raises(ModelError, match="auto_map: the model needs code of its own, which is not run"):
        load_whole_model(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}))
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(folder))
