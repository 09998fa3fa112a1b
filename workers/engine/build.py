"""From settings to a running engine: loads the model, sizes the cache, puts the parts together."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.decode_attention import sequences_per_tile
from workers.engine.block_pool import BlockPool
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.engine import Engine
from workers.engine.load_model import load_model, reads_causally
from workers.engine.memory import cache_budget
from workers.engine.runner import ModelRunner
from workers.engine.scheduler import Scheduler, SchedulerConfig
from workers.engine.warm_up import warm_up
from workers.model.encoder import Encoder, load_encoder
from workers.model.interface import ModelSizes
from workers.model.loaders.config import read_config, read_generation_defaults
from workers.model.loaders.pooling import read_pooling
from workers.model.loaders.resolve import resolve
from workers.model.pooling import Pooling
from workers.protocol import Ready

_WATERMARK = 0.01
_CPU_BLOCK_SIZE, _GPU_BLOCK_SIZE = 16, 64
"""On a GPU one block is one tile of keys: a wider one makes better products and fewer table reads."""
_CPU_FREE_TOKENS, _GPU_FREE_TOKENS = 16, 160
"""In bf16, computed in the time that reading the weights takes: 13 on two cores with AMX, 155 on an H200."""
_CPU_ENCODER_TOKENS = 1024
"""In one step, which nobody can interrupt: 0.23 s of one core for six layers of 384 (MiniLM)."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    engine: Engine | EncoderEngine
    ready: Ready
    path: Path


def build_engine(config: EngineConfig) -> BuiltEngine:
    """Load the model and make an engine for it. Raises ModelLoadError, or ValueError for settings that cannot be."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    path = resolve(config.model)
    raw = read_config(path)
    device, dtype = _device(config), _dtype(config, raw)
    pooling = read_pooling(path, raw, config.task)
    if pooling is not None and not reads_causally(config, raw):
        return _build_encoder(config, path, pooling, device, dtype)
    model, limit = load_model(config, path, raw, pooling, device, dtype)
    sizes = model.config
    block_size = config.block_size or (_GPU_BLOCK_SIZE if device.type == "cuda" else _CPU_BLOCK_SIZE)
    blocks = _num_blocks(config, sizes, block_size, dtype, device, limit)
    cache = _allocate_cache(sizes, blocks, block_size, dtype, device)
    eos = read_generation_defaults(path).eos_token_ids
    graphs = config.cuda_graphs and device.type == "cuda" and pooling is None and model.static
    runner = ModelRunner(model, cache, config.max_running, limit, eos, cuda_graphs=graphs, pooling=pooling)
    warm_up(runner, config.max_batched_tokens, limit)
    scheduling = SchedulerConfig(
        max_running=config.max_running,
        max_batched_tokens=config.max_batched_tokens,
        batch_step_tokens=config.batch_step_tokens,
        free_tokens=_GPU_FREE_TOKENS if device.type == "cuda" else _CPU_FREE_TOKENS,
        block_size=block_size,
        max_model_len=limit,
        # The mean is over states that the cache does not hold.
        prefix_caching=config.prefix_caching and (pooling is None or pooling.method != "mean"),
        watermark_blocks=int(_WATERMARK * blocks),
        sharing_tile=_sharing_tile(sizes) if device.type == "cuda" else 0,
        windows=sizes.kv_layout.windows,
    )
    scheduler = Scheduler(scheduling, BlockPool(blocks))
    vocab, asynchronous = sizes.vocab_size, device.type == "cuda"
    engine = Engine(scheduler, runner, eos, vocab, asynchronous)
    width = 0 if runner.pooler is None else runner.pooler.width
    ready = Ready(scheduler.longest, vocab, blocks - 1, block_size, config.max_running, eos, width)
    return BuiltEngine(engine, ready, path)


def _build_encoder(
    config: EngineConfig, path: Path, pooling: Pooling, device: torch.device, dtype: torch.dtype
) -> BuiltEngine:
    dummy = config.load_format == "dummy"
    model = load_encoder(path, dtype, trust_remote_code=config.trust_remote_code, dummy=dummy)
    encoder = Encoder(model, pooling, device)
    limit = min(config.max_model_len or pooling.max_length or encoder.longest, encoder.longest)
    tokens = config.max_batched_tokens if device.type == "cuda" else min(config.max_batched_tokens, _CPU_ENCODER_TOKENS)
    engine = EncoderEngine(
        encoder,
        max_running=config.max_running,
        max_batched_tokens=tokens,
        max_model_len=limit,
    )
    ready = Ready(limit, encoder.vocab_size, 0, 0, config.max_running, [], encoder.width)
    return BuiltEngine(engine, ready, path)


def _device(config: EngineConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, and torch sees no CUDA device; use --device cpu or auto")
    return device


def _dtype(config: EngineConfig, raw: dict[str, object]) -> torch.dtype:
    """What was asked for, else what the checkpoint was saved in, else (GGUF) bf16."""
    name = config.dtype
    if name == "auto":
        name = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not supported; supported: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _sharing_tile(decoder: ModelSizes) -> int:
    """0 where there is no beginning to share, since it leaves a window."""
    if decoder.kv_layout.windows[0]:
        return 0
    return sequences_per_tile(decoder.num_heads, decoder.num_kv_heads)


def _num_blocks(
    config: EngineConfig,
    decoder: ModelSizes,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    limit: int,
) -> int:
    """Blocks of the cache, block 0 included: as told, or what memory leaves, and no more than could ever be used."""
    if config.kv_blocks is not None:
        return config.kv_blocks + 1
    useful = config.max_running * -(-limit // block_size)
    budget = cache_budget(config, decoder, device)
    layout = decoder.kv_layout
    token_bytes = decoder.kv_values_per_token * layout.depth // decoder.num_layers * dtype.itemsize
    blocks = min(budget // (token_bytes * block_size), useful * len(layout.windows))
    if blocks < 1:
        raise ValueError(
            f"{budget} bytes of memory are left for the cache, which is not one block; lower what else runs"
        )
    return int(blocks) + 1


def _allocate_cache(
    decoder: ModelSizes, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    shape = (decoder.kv_layout.depth, 2, blocks, decoder.num_kv_heads, block_size, decoder.head_dim)
    if device.type == "cuda":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # zeros, and no memory until it is written to
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: attention misses the TLB less
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
