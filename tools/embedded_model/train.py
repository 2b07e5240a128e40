"""Train the embedded model: a small OLMoE (64 experts, top-8) on prose, code and mathematics.

Seeded; reads what `prepare_text.py` wrote; writes the model (bf16), its tokenizer, the held-out text and a training log
(losses per domain, time, expert skew) into the package's data folder.

    python tools/embedded_model/train.py --text build/text --out src/grace_moe/embedded
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

DOMAINS = ("prose", "code", "mathematics")
SEED = 20251123


def train_tokenizer(text: Path, vocabulary: int) -> Tokenizer:
    """Byte-level BPE on equal shares of the domains."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = 3_000_000
    tokenizer.train_from_iterator(((text / f"{d}.train.txt").read_text()[:share] for d in DOMAINS), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, path: Path) -> torch.Tensor:
    """Token ids of one file, encoded in pieces."""
    text = path.read_text()
    pieces = [text[i : i + 100_000] for i in range(0, len(text), 100_000)]
    return torch.tensor([i for e in tokenizer.encode_batch(pieces) for i in e.ids], dtype=torch.int32)


def batch_of(streams: dict[str, torch.Tensor], batch: int, length: int, generator: np.random.Generator) -> torch.Tensor:
    """`[batch, length]` token ids, the domains in equal shares."""
    rows = []
    for i in range(batch):
        stream = streams[DOMAINS[i % len(DOMAINS)]]
        start = int(generator.integers(0, len(stream) - length))
        rows.append(stream[start : start + length])
    return torch.stack(rows).long()


@torch.no_grad()
def heldout_losses(model: OlmoeForCausalLM, heldout: dict[str, torch.Tensor], length: int) -> dict[str, float]:
    """Mean next-token loss (nats) of each domain's held-out text."""
    model.eval()
    losses = {}
    for domain, stream in heldout.items():
        rows = stream[: len(stream) // length * length].view(-1, length)[:48].long()
        logits = model(rows, use_cache=False).logits[:, :-1]
        losses[domain] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    model.train()
    return losses


def save(model: OlmoeForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model in bf16 and its tokenizer."""
    config = model.config.to_dict()
    config["output_router_logits"] = False  # batched generate with a mask crashes in Transformers with it on
    copy = OlmoeForCausalLM._from_config(OlmoeConfig(**config), dtype=torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", padding_side="left"
    ).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--aux", type=float, default=0.01)
    parser.add_argument("--vocabulary", type=int, default=2048)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    generator = np.random.default_rng(SEED)
    arguments.out.mkdir(parents=True, exist_ok=True)

    tokenizer = train_tokenizer(arguments.text, arguments.vocabulary)
    streams = {d: encode(tokenizer, arguments.text / f"{d}.train.txt") for d in DOMAINS}
    heldout = {d: encode(tokenizer, arguments.text / f"{d}.heldout.txt") for d in DOMAINS}
    print({d: len(s) for d, s in streams.items()}, {d: len(s) for d, s in heldout.items()}, flush=True)

    config = OlmoeConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=192,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        num_experts=64,
        num_experts_per_tok=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        router_aux_loss_coef=arguments.aux,
        output_router_logits=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        use_cache=True,
    )
    model = OlmoeForCausalLM._from_config(config, dtype=torch.float32, experts_implementation="grouped_mm")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    log: dict = {
        "seed": SEED,
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "parameters": parameters,
        "train_tokens_available": {d: len(s) for d, s in streams.items()},
        "steps": [],
    }
    model.train()
    began = last = time.monotonic()
    for step in range(1, arguments.steps + 1):
        # Warm up, stay, then decay to zero over the last 40% of the steps: the losses flatten at the end.
        cooling = max(0.0, (step / arguments.steps - 0.6) / 0.4)
        scale = min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * cooling))
        for group in optimiser.param_groups:
            group["lr"] = arguments.learning_rate * scale
        rows = batch_of(streams, arguments.batch, arguments.length, generator)
        out = model(rows, labels=rows, use_cache=False)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == arguments.steps:
            entry = {
                "step": step,
                "minutes": round((time.monotonic() - began) / 60, 2),
                "train_loss": round(out.loss.item(), 4),
                "aux_loss": round(out.aux_loss.item(), 3),
                "tokens_per_second": round(arguments.batch * arguments.length * 100 / (time.monotonic() - last)),
            }
            last = time.monotonic()
            if step % 300 == 0:
                entry["heldout"] = {d: round(v, 4) for d, v in heldout_losses(model, heldout, arguments.length).items()}
                save(model, tokenizer, arguments.out)
            log["steps"].append(entry)
            print(json.dumps(entry), flush=True)
            (arguments.out / "training_log.json").write_text(json.dumps(log, indent=1))
    log["minutes"] = round((time.monotonic() - began) / 60, 1)
    log["tokens"] = arguments.steps * arguments.batch * arguments.length
    log["heldout_loss_nats_per_token"] = {d: round(v, 4) for d, v in heldout_losses(model, heldout, arguments.length).items()}

    save(model, tokenizer, arguments.out)
    for domain in DOMAINS:
        shutil.copy(arguments.text / f"{domain}.heldout.txt", arguments.out / f"{domain}.txt")
    (arguments.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(json.dumps(log["heldout_loss_nats_per_token"]), f"{log['minutes']} minutes", flush=True)


if __name__ == "__main__":
    main()
