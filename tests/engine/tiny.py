"""A small random Llama, by transformers and by this engine, on the same weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kernels.decode_attention import sequences_per_tile
from schemas.messages import SamplingParams
from workers.engine.block_pool import BlockPool
from workers.engine.engine import Engine
from workers.engine.runner import ModelRunner
from workers.engine.scheduler import Scheduler, SchedulerConfig
from workers.model.decoder import Decoder
from workers.model.families.registry import decoder_config
from workers.protocol import AddRequest, TokenOutput

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES: dict[str, Any] = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=211,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3-rope": (
        LlamaConfig,
        LlamaForCausalLM,
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=10000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        ),
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=16, tie_word_embeddings=True)),
}


def reference(family: str = "llama", **sizes: Any) -> Any:
    """A transformers model of one family with weights wide enough that greedy choices are clear."""
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(7)
    model = model_class(config_class(**{**SIZES, **extra, **sizes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15)
    return model


def decoder(model: Any, dtype: torch.dtype = torch.float32) -> Decoder:
    state = model.state_dict()
    config = decoder_config({**model.config.to_dict(), "architectures": [type(model).__name__]})
    return Decoder(config, lambda name, shape: state[name].view(shape).to(DEVICE, dtype), max_positions=256)


BLOCK_SIZE = 16 if DEVICE.type == "cuda" else 4


def engine(model: Any, *, blocks: int = 128, block_size: int = BLOCK_SIZE, eos: int = 2, **scheduling: Any) -> Engine:
    blocks = blocks * 4 // block_size
    tile = sequences_per_tile(6, 2) if DEVICE.type == "cuda" else 0
    settings: dict[str, Any] = dict(
        max_running=8, max_batched_tokens=64, block_size=block_size, max_model_len=256, sharing_tile=tile
    )
    config = SchedulerConfig(**{**settings, **scheduling})
    ours = decoder(model)
    shape = (ours.config.num_layers, 2, blocks, ours.config.num_kv_heads, block_size, ours.config.head_dim)
    graphs = DEVICE.type == "cuda"
    cache = torch.zeros(shape, device=DEVICE)
    runner = ModelRunner(ours, cache, config.max_running, config.max_model_len, [eos], graphs)
    return Engine(Scheduler(config, BlockPool(blocks)), runner, [eos], ours.config.vocab_size, asynchronous=False)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy continuation, without its generate()."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def run(engine: Engine, requests: list[AddRequest]) -> dict[str, list[TokenOutput]]:
    """Add all, step until nothing is left, and check that no block leaked."""
    outputs: dict[str, list[TokenOutput]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    for _ in range(5000):
        if not engine.has_work:
            break
        for output in engine.step():
            outputs[output.id].append(output)
        engine.scheduler.check()
    assert not engine.has_work
    assert engine.scheduler.pool.num_used == 0
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def request(name: str, prompt: list[int], **sampling: Any) -> AddRequest:
    settings: dict[str, Any] = dict(temperature=0.0, max_tokens=24, ignore_eos=True)
    return AddRequest(name, prompt, SamplingParams(**{**settings, **sampling}))
