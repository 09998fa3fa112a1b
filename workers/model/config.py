"""What a decoder is made of, as data. A family maps a checkpoint's config to this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """`kind`: default, linear (positions divided by `factor`), or llama3 (long wavelengths stretched by `factor`)."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer with pre-norms, grouped-query attention and a gated MLP."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the cache, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
