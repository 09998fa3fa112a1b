"""How much memory the KV cache gets."""

from __future__ import annotations

import torch

from workers.engine.config import EngineConfig
from workers.model.interface import ModelSizes

CPU_CACHE_BYTES = 2 << 30


def cache_budget(config: EngineConfig, sizes: ModelSizes, device: torch.device, loaded: int = 0) -> int:
    """Bytes, by the settings and by what is free now. `loaded`: bytes of weights that are still to be loaded."""
    if config.kv_memory_bytes is not None:
        return config.kv_memory_bytes
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    activations = config.max_batched_tokens * (4 * sizes.intermediate_size + 4 * sizes.hidden_size) * 4
    logits = config.max_running * sizes.vocab_size * 4 * 4
    return int(free - (1 - config.gpu_memory_fraction) * total) - activations - logits - loaded
