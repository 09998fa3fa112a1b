"""Each request of the chaos run has one right answer: computed by transformers in float64, no choice of the model's is so
close that rounding in float32 (2e-5 in a logit was the most over all of them) could tip it, whatever the batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.chaos_load import SPECS, TOP_K, request_body
from bench.tiny_model import TEMPLATE, write_tiny_model
from kernels.sampling import philox_uniform
from schemas.messages import SamplingParams
from workers.llm import LLM

CLOSEST_LOGITS = 2e-4
CLOSEST_DRAW = 5e-5


@dataclass(frozen=True, slots=True)
class Chosen:
    """One step of all requests: [SPECS] each."""

    tokens: Tensor
    logit_gap: Tensor
    draw_gap: Tensor


def choose(logits: Tensor, position: int, bodies: list[dict[str, object]]) -> Chosen:
    """As the sampler does. The gap is that to the second logit, or of a sampled row that at the border of its top k, and
    the distance of its draw from the nearest border of a token."""
    greedy = torch.tensor([body["temperature"] == 0 for body in bodies])
    seeds = torch.tensor([body["seed"] for body in bodies])
    top = logits.topk(TOP_K + 1).values
    kept = (logits / 0.8).masked_fill(logits < top[:, TOP_K - 1 : TOP_K], -torch.inf)
    cumulative = kept.softmax(-1).cumsum(-1)
    uniform = philox_uniform(seeds, torch.full((SPECS,), position)).double().unsqueeze(-1)
    drawn = torch.searchsorted(cumulative, uniform, right=True)[:, 0]
    return Chosen(
        torch.where(greedy, logits.argmax(-1), drawn),
        torch.where(greedy, top[:, 0] - top[:, 1], top[:, TOP_K - 1] - top[:, TOP_K]),
        torch.where(greedy, 1.0, (cumulative - uniform).abs().amin(-1)),
    )


def prompts(bodies: list[dict[str, object]]) -> Tensor:
    """[SPECS, length], of one length."""
    from jinja2 import Template
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    template = Template(TEMPLATE)
    texts = [template.render(messages=body["messages"], add_generation_prompt=True) for body in bodies]
    ids = {character: number for number, character in enumerate(alphabet)}
    return torch.tensor([[ids[_visible(byte)] for byte in text.encode()] for text in texts])


def _visible(byte: int) -> str:
    """The character by which byte-level tokenizers show a byte."""
    return {10: "\u010a", 32: "\u0120"}.get(byte, chr(byte))


@torch.no_grad()
def reference(folder: Path, bodies: list[dict[str, object]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and both gaps: [SPECS, longest output]."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder).double()
    tokens, cache, steps = prompts(bodies), None, []
    length = tokens.shape[1]
    for step in range(max(int(str(body["max_tokens"])) for body in bodies)):
        made = model(tokens, past_key_values=cache, use_cache=True)
        cache = made.past_key_values
        steps.append(choose(made.logits[:, -1], length + step, bodies))
        tokens = steps[-1].tokens.unsqueeze(-1)
    names = ("tokens", "logit_gap", "draw_gap")
    columns = [torch.stack([getattr(step, name) for step in steps], 1) for name in names]
    return columns[0], columns[1], columns[2]


@pytest.mark.timeout(120)
def test_no_choice_is_a_close_one_and_the_engine_makes_the_same(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    bodies = [request_body(number, "tiny") for number in range(SPECS)]
    tokens, logit_gap, draw_gap = reference(folder, bodies)
    names = ("max_tokens", "temperature", "top_k", "seed", "ignore_eos")
    sampling = [SamplingParams(**{name: body[name] for name in names}) for body in bodies]
    outputs = LLM(str(folder), device="cpu", threads=1).generate(prompts(bodies).tolist(), sampling)
    for spec, output in enumerate(outputs):
        length = len(output.token_ids)
        assert length == bodies[spec]["max_tokens"]
        assert output.token_ids == tokens[spec, :length].tolist()
        assert logit_gap[spec, :length].min() > CLOSEST_LOGITS
        assert draw_gap[spec, :length].min() > CLOSEST_DRAW
