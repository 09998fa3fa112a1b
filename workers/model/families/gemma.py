"""Gemma 1 to 3, the text part: norms of weight 1 + w, scaled embeddings, and from 2 on norms on either side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families.common import activation, decoder, head_dim, layer_types, rms, sliding
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import ropes_by_type
from workers.model.names import WeightNames

_DEFAULTS: Raw = dict(head_dim=256, tie_word_embeddings=True, max_position_embeddings=8192)
_GEMMA3_DEFAULTS: Raw = dict(
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, vocab_size=262208, max_position_embeddings=131072,
    tie_word_embeddings=True, query_pre_attn_scalar=256,
)  # fmt: skip
_SANDWICH = WeightNames(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_INSIDE = replace(_SANDWICH, prefixes=("model.language_model.", "language_model.model.", "model.", ""))


def _config(raw: Raw, **changes: Any) -> DecoderConfig:
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported")
    act = raw.get("hidden_activation") or raw.get("hidden_act") or "gelu_pytorch_tanh"
    mlp = dict(activation=activation("gelu_pytorch_tanh" if act == "gelu" else act))  # what Gemma's first configs say
    return decoder(raw, rms(raw, offset=1.0), mlp=mlp, embedding_scale=raw["hidden_size"] ** 0.5, **changes)


def gemma(raw: Raw) -> DecoderConfig:
    return _config({**_DEFAULTS, **raw})


def _sandwiched(raw: Raw, **changes: Any) -> DecoderConfig:
    norm = rms(raw, offset=1.0)
    cap = raw.get("final_logit_softcapping") or 0.0
    return _config(
        raw, layer=dict(attention_post_norm=norm, mlp_post_norm=norm), logit_cap=cap, **{"names": _SANDWICH, **changes}
    )


def gemma2(raw: Raw) -> DecoderConfig:
    raw = {**_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **raw}
    attention = dict(scale=raw.get("query_pre_attn_scalar", 256) ** -0.5, soft_cap=raw["attn_logit_softcapping"] or 0.0)
    vary = sliding(layer_types(raw, 2), raw.get("sliding_window", 4096))
    return _sandwiched(raw, attention=attention, vary=vary)


def gemma3(raw: Raw, **changes: Any) -> DecoderConfig:
    raw = {**_GEMMA3_DEFAULTS, **raw}
    everywhere, local = ropes_by_type(raw, head_dim(raw), theta=1e6, local_theta=1e4)
    attention = dict(
        scale=raw["query_pre_attn_scalar"] ** -0.5,
        soft_cap=raw.get("attn_logit_softcapping") or 0.0,
        qk_norm=rms(raw, offset=1.0),
        rope=everywhere,
    )
    types = layer_types(raw, raw.get("sliding_window_pattern", 6))
    vary = sliding(types, raw.get("sliding_window", 4096), rope=local)
    return _sandwiched(raw, attention=attention, vary=vary, **changes)


def gemma3_inside(raw: Raw) -> DecoderConfig:
    """Of a model that also sees images."""
    return gemma3({**raw["text_config"]}, names=_INSIDE)


FAMILY = Family(
    "Gemma",
    "Gemma 1, 2 and 3 (text)",
    {
        "GemmaForCausalLM": gemma,
        "Gemma2ForCausalLM": gemma2,
        "Gemma3ForCausalLM": gemma3,
        "Gemma3ForConditionalGeneration": gemma3_inside,
    },
)
