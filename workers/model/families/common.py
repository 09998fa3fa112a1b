"""What most families' configs have in common: names of settings, windows, and the shape of a Llama."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from workers.model.config import Activation, AttentionConfig, DecoderConfig, LayerConfig, MLPConfig, NormConfig
from workers.model.families.family import Raw
from workers.model.families.ropes import rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def activation(name: str) -> Activation:
    """Raises ValueError for one that the decoder does not have."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def layer_types(raw: Raw, pattern: int) -> Sequence[str]:
    """sliding_attention or full_attention for each layer; where the config does not say, every `pattern`th is full."""
    given: Sequence[str] | None = raw.get("layer_types")
    if given is not None:
        return given
    return [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(raw["num_hidden_layers"])
    ]


def renamed(raw: Raw, **words: str) -> Raw:
    """The config with what it says in its own words said in the usual ones, too: usual="own"."""
    return {**{usual: raw[own] for usual, own in words.items() if own in raw}, **raw}


def layer_norm(raw: Raw, key: str = "layer_norm_eps", *, bias: bool = True) -> NormConfig:
    return NormConfig(kind="layer", eps=raw.get(key, 1e-5), bias=bias)


def with_attention(layer: LayerConfig, **changes: Any) -> LayerConfig:
    return replace(layer, attention=replace(layer.attention, **changes))


def sliding(types: Sequence[str], window: int | None, **changes: Any) -> Callable[[int, LayerConfig], LayerConfig]:
    """Gives layers of type sliding_attention their window, and what else differs in their attention."""

    def vary(index: int, layer: LayerConfig) -> LayerConfig:
        slides = types[index] == "sliding_attention"
        return with_attention(layer, window=window or 0, **changes) if slides else layer

    return vary


def head_dim(raw: Raw) -> int:
    return int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"])


def rms(raw: Raw, eps: float = 1e-6, **changes: Any) -> NormConfig:
    """eps: the family's default."""
    return NormConfig(eps=raw.get("rms_norm_eps", eps), **changes)


def decoder(
    raw: Raw,
    norm: NormConfig,
    *,
    attention: Raw | None = None,
    mlp: Raw | None = None,
    layer: Raw | None = None,
    vary: Callable[[int, LayerConfig], LayerConfig] | None = None,
    **changes: Any,
) -> DecoderConfig:
    """A Llama in the words of its config, with changes to its parts. `norm` is before attention, before the MLP and at the
    end. vary: what differs from layer to layer."""
    parts: Raw = dict(
        attention=_attention(raw, attention or {}),
        mlp=_mlp(raw, mlp or {}),
        attention_norm=norm,
        mlp_norm=norm,
    )
    common = LayerConfig(**{**parts, **(layer or {})})
    layers = [common if vary is None else vary(i, common) for i in range(raw["num_hidden_layers"])]
    fields: Raw = dict(
        hidden_size=raw["hidden_size"],
        vocab_size=raw["vocab_size"],
        max_position=raw.get("max_position_embeddings", 2048),
        layers=tuple(layers),
        final_norm=norm,
        tie_embeddings=raw.get("tie_word_embeddings", False),
    )
    config = DecoderConfig(**{**fields, **changes})
    return replace(config, longest_position=_longest(config))


def _attention(raw: Raw, changes: Raw) -> AttentionConfig:
    heads, dim = raw["num_attention_heads"], changes.get("head_dim") or head_dim(raw)
    fields: Raw = dict(
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=dim,
        scale=dim**-0.5,
        qkv_bias=raw.get("attention_bias", False),
        output_bias=raw.get("attention_bias", False),
    )
    if "rope" not in changes:
        fields["rope"] = rope(raw, dim)
    return AttentionConfig(**{**fields, **changes})


def _mlp(raw: Raw, changes: Raw) -> MLPConfig:
    fields: Raw = dict(bias=raw.get("mlp_bias", False))
    if "size" not in changes:
        fields["size"] = raw["intermediate_size"]
    if "activation" not in changes:
        fields["activation"] = activation(raw.get("hidden_act", "silu"))
    return MLPConfig(**{**fields, **changes})


def _longest(config: DecoderConfig) -> int:
    """dynamic and yarn name the context that they were trained for; their factor says how far they stretch it."""
    ropes = [layer.attention.rope for layer in config.layers]
    stretched = [
        int(rope.original_max_position * rope.factor)
        for rope in ropes
        if rope is not None and rope.kind in ("dynamic", "yarn")
    ]
    return max([config.max_position, *stretched])
