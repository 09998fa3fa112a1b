"""Two layers of the head shapes that real models have, against transformers, on the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from schemas.messages import SamplingParams
from workers.llm import LLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES: dict[str, Any] = dict(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, vocab_size=4000, max_position_embeddings=36_000,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MODELS: dict[str, Any] = {
    "llama-3.1-8b": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_theta=500_000.0)
    ),
    "qwen3-0.6b": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1_000_000.0)
    ),
    "smollm2": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "hidden_size": 576}, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    ),
}


@pytest.fixture(params=list(MODELS))
def reference(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    return MODELS[request.param]().eval()


def engine(reference: Any, folder: Any, dtype: str, **settings: Any) -> LLM:
    reference.save_pretrained(folder)
    return LLM(str(folder), dtype=dtype, device="cuda", max_running=16, kv_blocks=1200, **settings)


def prompt(length: int) -> list[int]:
    return torch.randint(3, 4000, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def theirs(reference: Any, ids: list[int], count: int) -> list[int]:
    out = reference.generate(
        torch.tensor([ids], device="cuda"), do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
    )
    return list(out[0, len(ids) :].tolist())


@torch.inference_mode()
def test_greedy_ids_in_fp32(reference: Any, tmp_path: Any) -> None:
    """Together, chunked, and each as transformers alone."""
    llm = engine(reference, tmp_path, "float32", max_model_len=2048, max_batched_tokens=256)
    reference = reference.cuda()
    prompts = [prompt(length) for length in (1, 63, 64, 65, 300, 1000)]
    ours = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True))
    for ids, result in zip(prompts, ours, strict=True):
        assert result.token_ids == theirs(reference, ids, 48)


@torch.inference_mode()
@pytest.mark.parametrize("length", [40, 700])
def test_logprobs_in_bf16(reference: Any, tmp_path: Any, length: int) -> None:
    """The first token's best logprobs, within 1e-2 of the model in fp32, relative to their spread."""
    llm = engine(reference, tmp_path, "bfloat16", max_model_len=2048)
    ids = prompt(length)
    [result] = llm.generate([ids], SamplingParams(temperature=0.0, max_tokens=1, logprobs=20, ignore_eos=True))
    logits = reference.float().cuda()(torch.tensor([ids], device="cuda")).logits[0, -1]
    want = logits.log_softmax(-1)[torch.tensor(result.logprobs[0].top_ids, device="cuda")].cpu()
    got = torch.tensor(result.logprobs[0].top_logprobs)
    assert (got - want).norm() / want.norm() < 1e-2


def theirs_in_chunks(reference: Any, ids: list[int], count: int, chunk: int = 1024) -> list[int]:
    """As theirs, without a matrix of all scores."""
    cache, out = None, list[int]()
    for start in range(0, len(ids), chunk):
        part = torch.tensor([ids[start : start + chunk]], device="cuda")
        answer = reference(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
    for _ in range(count):
        out.append(int(answer.logits[0, -1].argmax()))
        answer = reference(torch.tensor([out[-1:]], device="cuda"), past_key_values=cache, use_cache=True)
    return out


@torch.inference_mode()
def test_a_context_of_32k(tmp_path: Any) -> None:
    """Chunks of 4,096 tokens, then decode over all of it."""
    torch.manual_seed(3)
    reference = MODELS["llama-3.1-8b"]().eval()
    llm = engine(reference, tmp_path, "float32", max_model_len=33_000, max_batched_tokens=4096)
    reference = reference.cuda()
    ids = prompt(32_000)
    [result] = llm.generate([ids], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    assert result.token_ids == theirs_in_chunks(reference, ids, 8)
