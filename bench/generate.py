"""`headrace bench generate`: transformers generate() and Headrace on one GPU, the same requests of mixed lengths.

Prompts of 16 to 1,024 tokens and outputs of 16 to 512, log-uniform. The peer runs them in static batches, padded on the left,
each as long as its longest member, and one by one for the first few; only tokens that were asked for count. Both have
random weights of the model's shape: speed is measured, not text. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from typing import Any

import torch

from schemas.messages import SamplingParams
from workers.llm import LLM

PROMPTS, OUTPUTS = (16, 1024), (16, 512)


def main(arguments: list[str]) -> None:
    options = argparse.ArgumentParser(prog="headrace bench generate", description=__doc__)
    options.add_argument("--model", required=True, help="model folder; only its config is read")
    options.add_argument("--requests", type=int, default=128)
    options.add_argument("--batch", type=int, default=32, help="the peer's static batches")
    options.add_argument("--single", type=int, default=2, help="requests that the peer also runs one by one")
    chosen = options.parse_args(arguments)
    draw = random.Random("generate")
    prompts = [[draw.randrange(300, 100_000) for _ in range(_length(draw, PROMPTS))] for _ in range(chosen.requests)]
    lengths = [_length(draw, OUTPUTS) for _ in prompts]
    ours = our_rate(chosen.model, prompts, lengths)
    _say("headrace", ours)
    peer = load_peer(chosen.model)
    peer_rate(peer, prompts[:2], [8, 8], 2)
    single = peer_rate(peer, prompts[: chosen.single], lengths[: chosen.single], 1)
    _say("transformers, one by one", single)
    batched = peer_rate(peer, prompts, lengths, chosen.batch)
    _say(f"transformers, batches of {chosen.batch}", batched)
    rates = {"headrace_tok_s": ours, "generate_single_tok_s": single, "generate_batched_tok_s": batched}
    ratios = {"over_single": round(ours / single, 2), "over_batched": round(ours / batched, 2)}
    print(json.dumps({**{name: round(rate, 1) for name, rate in rates.items()}, **ratios}))


def _length(draw: random.Random, bounds: tuple[int, int]) -> int:
    low, high = (math.log(bound) for bound in bounds)
    return round(math.exp(draw.uniform(low, high)))


def _say(what: str, rate: float) -> None:
    print(f"{what}: {rate:.1f} tok/s", file=sys.stderr, flush=True)


def our_rate(model: str, prompts: list[list[int]], lengths: list[int]) -> float:
    """Tokens a second; the engine and its memory are gone afterwards."""
    llm = LLM(model, load_format="dummy", max_running=256, max_model_len=2048)
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    llm.generate(prompts[:8], params[:8])
    started = time.perf_counter()
    results = llm.generate([[token + 1 for token in prompt] for prompt in prompts], params)
    elapsed = time.perf_counter() - started
    assert [len(result.token_ids) for result in results] == lengths
    del llm
    torch.cuda.empty_cache()
    return sum(lengths) / elapsed


def load_peer(model: str) -> Any:
    """transformers' model with random weights, made on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("cuda"):
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    return made.eval()


def peer_rate(model: Any, prompts: list[list[int]], lengths: list[int], batch: int) -> float:
    """Asked-for tokens a second in static batches of `batch`."""
    started = time.perf_counter()
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        longest, width = max(lengths[first : first + batch]), max(len(prompt) for prompt in part)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in part], device="cuda")
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part], device="cuda")
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                pad_token_id=0,
                min_new_tokens=longest,
                max_new_tokens=longest,
            )
        assert out.shape[1] == width + longest
    torch.cuda.synchronize()
    return sum(lengths) / (time.perf_counter() - started)
