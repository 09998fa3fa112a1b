"""What an engine is told at its start."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

LoadFormat = Literal["auto", "dummy"]
Implementation = Literal["auto", "native", "transformers"]
Task = Literal["auto", "generate", "embed"]


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Settings of one engine. `model` is what `workers.model.loaders.resolve` takes: a folder, a GGUF file, `demo`, or a
    hub id. None or "auto" means: decide from the model and the machine. `implementation` says whose code computes
    the model: a family's, transformers', or auto, which is transformers' where there is no family. `task` says what is made,
    text or embeddings; auto: embeddings by a folder with sentence-transformers' modules, and by a base model."""

    model: str
    load_format: LoadFormat = "auto"
    implementation: Implementation = "auto"
    task: Task = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_running: int = 256
    max_batched_tokens: int = 8192
    batch_step_tokens: int | None = None
    block_size: int | None = None
    kv_blocks: int | None = None
    kv_memory_bytes: int | None = None
    gpu_memory_fraction: float = 0.90
    prefix_caching: bool = True
    cuda_graphs: bool = True
    threads: int | None = None
    seed: int = 0
    trust_remote_code: bool = False
