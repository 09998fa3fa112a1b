"""What a decoder is made of, as data. A family maps a checkpoint's config to this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kernels.moe_routing import RoutingOptions
from workers.model.kv_layout import KVLayout, kv_layout
from workers.model.names import WeightNames

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding of the first `dim` values of each head.

    `kind` says how `theta`'s frequencies are stretched; `workers.model.rope` has the formulas and what each kind reads.
    interleaved: the checkpoint pairs neighbours (2i, 2i + 1), not the halves (i, i + dim / 2).
    magnitude: what cos and sin are multiplied by. factors: [dim / 2] of longrope, which divide the frequencies in
    contexts that need no more than `original_max_position`, and long_factors in others.
    """

    theta: float
    dim: int
    kind: RopeKind = "default"
    interleaved: bool = False
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    original_max_position: int = 8192
    magnitude: float = 1.0
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """`offset` is added to the checkpoint's weights (1 where it stores weight - 1, as Gemma does)."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    weight: bool = True
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Attention of grouped queries.

    scale: factor of q k^T. rope: None where nothing is rotated. window: keys that a query sees, 0 is all. soft_cap: bound of
    the logits, 0 is none. alibi: factor of the linear biases by distance, 0 is none. clip: bound of q, k and v, 0 is none.
    qk_norm: norms of q and k before the rotation, by `qk_norm_over`: "head", with one weight for all heads; "heads", with
    a weight for each; "whole", over all heads at once. sinks: each head's softmax has a learned logit more.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None
    window: int = 0
    soft_cap: float = 0.0
    alibi: float = 0.0
    clip: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "heads", "whole"] = "head"
    sinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionConfig:
    """Attention whose queries, and whose keys and values, come from narrow latents (DeepSeek V2, arXiv:2405.04434).

    A head's query and key are `plain_dim` values that are not rotated and `rope_dim` that are; the rotated part of the key
    is the same for all heads. query_rank: width of the queries' latent, 0 is none; kv_rank: of that of keys and values.
    norm: of the latents. bias: of the projections to them, and of the output.
    """

    num_heads: int
    plain_dim: int
    rope_dim: int
    value_dim: int
    query_rank: int
    kv_rank: int
    scale: float
    rope: RopeConfig
    norm: NormConfig
    bias: bool = False
    window: int = 0

    @property
    def num_kv_heads(self) -> int:
        """Keys and values are cached as each head has them."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.plain_dim + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPConfig:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where it is not gated."""

    size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """A mixture of `experts`, each a gated MLP of `expert_size` with silu, of which `routing` chooses some for each token.

    router_bias: of the router's logits. correction: a bias of the choice alone. wide_router: logits are computed in fp32.
    shared: an MLP that all tokens go through; shared_gate: times the sigmoid of a projection. bias: of the experts'
    products. limit, alpha: of the clamped gate (see `kernels.moe_experts`), 0 is silu.
    """

    experts: int
    expert_size: int
    routing: RoutingOptions
    router_bias: bool = False
    correction: bool = False
    wide_router: bool = False
    shared: MLPConfig | None = None
    shared_gate: bool = False
    bias: bool = False
    alpha: float = 1.0
    limit: float = 0.0

    @property
    def size(self) -> int:
        """Inner values of a token."""
        return self.routing.top_k * self.expert_size + (self.shared.size if self.shared else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """How attention and MLP hang together, x being what runs through the layers:

    sequential: x += post(attention(norm(x))), then the same with the MLP; each norm may be missing.
    parallel: x += attention(norm(x)) + mlp(norm(x)), of one norm for both where mlp_norm is missing.
    post: x = post(x + attention(x)), then the same with the MLP.
    residual_scale multiplies what attention and MLP add.
    """

    attention: AttentionConfig | LatentAttentionConfig
    mlp: MLPConfig | MoEConfig
    wiring: Literal["sequential", "parallel", "post"] = "sequential"
    attention_norm: NormConfig | None = None
    attention_post_norm: NormConfig | None = None
    mlp_norm: NormConfig | None = None
    mlp_post_norm: NormConfig | None = None
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer: embedding, layers, final norm, head.

    max_position: tokens of the context; longest_position: the most that may be asked for, where a rope kind stretches.
    embedding_size: where embeddings are narrower than the layers, with a projection on either side. positions: rows of
    the table of learned positions, of which position p takes row p + position_offset; 0 where there is none.
    headless: hidden states are wanted, and no logits.
    logit_scale multiplies the logits, then logit_cap bounds them by cap * tanh(logits / cap); 0 is no bound.
    """

    hidden_size: int
    vocab_size: int
    max_position: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None
    tie_embeddings: bool
    names: WeightNames = field(default_factory=WeightNames)
    longest_position: int = 0
    embedding_size: int = 0
    embedding_scale: float = 1.0
    embedding_norm: NormConfig | None = None
    positions: int = 0
    position_offset: int = 0
    headless: bool = False
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    @property
    def attention(self) -> AttentionConfig | LatentAttentionConfig:
        """Of the first layer: heads and their size are the same in all."""
        return self.layers[0].attention

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        return self.attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.attention.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim

    @property
    def intermediate_size(self) -> int:
        """Of the widest MLP."""
        return max(layer.mlp.size for layer in self.layers)

    @property
    def kv_layout(self) -> KVLayout:
        """Which layers share blocks."""
        return kv_layout([layer.attention.window for layer in self.layers])

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the cache, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
