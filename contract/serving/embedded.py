"""The embedded model as vLLM takes it, its prompts, and the trace of what was served of it."""

import json
import shutil
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.recordings.requests import RoutedRequest, trace_of_requests
from serving.job import Outcome

FOLDER = Path(__file__).parents[2] / "src/grace_moe/embedded"
EXPERTS = json.loads((FOLDER / "config.json").read_text())["num_experts"]
ENGINE = {"model_impl": "transformers"}
"""vLLM's own OLMoE is none of its balancer's models; Transformers' is."""
ONE_BY_ONE = {"max_num_seqs": 1}
"""So that `serving.routing` sees a request after the other."""


def write_model(folder: Path) -> Path:
    """The model with an output layer of its own: vLLM's OLMoE knows no tied one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def text_ids(name: str) -> list[int]:
    """Token ids of a text that comes with the model: `prose.txt`, `code.txt`, `mathematics.txt`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)((FOLDER / name).read_text()[:60_000])["input_ids"]


def trace_of(served: Outcome, prompts: tuple[tuple[int, ...], ...], new_tokens: int) -> RoutingTrace:
    """The routing of what one process served `ONE_BY_ONE` under `serving.routing`: request i is prompt i."""
    experts = np.array(served.ranks[0]["experts"], dtype=np.int32).transpose(1, 0, 2)
    lengths = [len(prompt) + new_tokens - 1 for prompt in prompts]  # the last token is not run through the model
    assert len(experts) == sum(lengths)
    parts = np.split(experts, np.cumsum(lengths)[:-1])
    requests = [RoutedRequest(topk_ids=ids, prompt_tokens=len(prompt)) for ids, prompt in zip(parts, prompts, strict=True)]
    return trace_of_requests(requests, Hints(), num_experts=EXPERTS, source="served").trace
