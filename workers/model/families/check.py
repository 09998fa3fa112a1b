"""Whether the numbers of a config go together, before any weight is read."""

from __future__ import annotations

from workers.model.config import AttentionConfig, DecoderConfig, RopeConfig


def check(config: DecoderConfig) -> None:
    """Raises ValueError."""
    if not config.layers:
        raise ValueError("the model's config asks for no layers")
    sizes = dict(hidden_size=config.hidden_size, vocab_size=config.vocab_size, max_position=config.max_position)
    for name, size in {**sizes, "intermediate_size": config.intermediate_size}.items():
        if size < 1:
            raise ValueError(f"the model's config asks for {name} {size}")
    shapes = {
        (layer.attention.num_heads, layer.attention.num_kv_heads, layer.attention.head_dim) for layer in config.layers
    }
    if len(shapes) > 1:
        raise ValueError("layers with different heads are not supported")
    for layer in config.layers:
        if isinstance(layer.attention, AttentionConfig):
            _check_attention(layer.attention)


def _check_attention(config: AttentionConfig) -> None:
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    if min(heads, kv_heads, dim) < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads of size {dim} cannot share {kv_heads} kv heads")
    if dim % 2:
        raise ValueError(f"heads of an odd size are not supported; the config asks for {dim}")
    if config.rope is not None:
        _check_rope(config.rope, dim)


def _check_rope(rope: RopeConfig, head_dim: int) -> None:
    if rope.dim % 2 or not 0 < rope.dim <= head_dim:
        raise ValueError(f"the model's config rotates {rope.dim} of {head_dim} values of a head")
    if rope.kind == "longrope" and {len(rope.factors), len(rope.long_factors)} != {rope.dim // 2}:
        raise ValueError(
            f"longrope needs short_factor and long_factor of {rope.dim // 2} numbers; "
            f"the config has {len(rope.factors)} and {len(rope.long_factors)}"
        )
