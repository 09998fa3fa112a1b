"""Offline workloads of fixed shape: random token ids, fixed lengths, end of sequence ignored.

Peers' seconds were measured with the same prompts on one NVIDIA H200 (bf16, random weights, median of 3); floors are
arithmetic: weights and cache over 4.3 TB/s, matrix products over 780 TFLOP/s. See docs/performance.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """`shared_prefix` tokens of each prompt are the same for all requests."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    shared_prefix: int = 0

    def prompts(self, name: str, vocab: int, seed: int) -> list[list[int]]:
        draw = random.Random(f"{seed}-{name}").randrange
        low, high = min(300, vocab // 2), min(120_000, vocab)
        head = [draw(low, high) for _ in range(self.shared_prefix)]
        own = self.prompt_tokens - self.shared_prefix
        return [head + [draw(low, high) for _ in range(own)] for _ in range(self.requests)]


WORKLOADS = {
    "latency-1": Workload(1, 128, 256),
    "decode-256": Workload(256, 128, 256),
    "mixed-512": Workload(512, 512, 256),
    "prefill-64": Workload(64, 4096, 16),
    "shared-256": Workload(256, 2048, 128, shared_prefix=1920),
}

VLLM_SECONDS = {
    ("llama-8b", "latency-1"): 1.280,
    ("llama-8b", "decode-256"): 3.612,
    ("llama-8b", "mixed-512"): 12.726,
    ("llama-8b", "prefill-64"): 6.631,
    ("llama-8b", "shared-256"): 3.504,
    ("qwen3-0.6b", "latency-1"): 0.681,
    ("qwen3-0.6b", "decode-256"): 1.984,
    ("qwen3-0.6b", "mixed-512"): 4.421,
    ("qwen3-0.6b", "shared-256"): 1.918,
    ("qwen3-30b-a3b", "latency-1"): 1.060,
    ("qwen3-30b-a3b", "decode-256"): 6.036,
    ("qwen3-30b-a3b", "mixed-512"): 13.072,
}

FLOOR_SECONDS = {
    ("llama-8b", "latency-1"): 0.894,
    ("llama-8b", "decode-256"): 2.354,
    ("llama-8b", "mixed-512"): 9.796,
    ("llama-8b", "prefill-64"): 5.225,
    ("llama-8b", "shared-256"): 1.489,
    ("qwen3-0.6b", "latency-1"): 0.070,
    ("qwen3-0.6b", "decode-256"): 0.579,
    ("qwen3-0.6b", "mixed-512"): 2.736,
    ("qwen3-0.6b", "shared-256"): 0.280,
    ("qwen3-30b-a3b", "latency-1"): 0.358,
    ("qwen3-30b-a3b", "decode-256"): 4.204,
    ("qwen3-30b-a3b", "mixed-512"): 7.346,
}
