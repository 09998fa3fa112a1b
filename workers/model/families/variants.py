"""Llamas with one or two things of their own: Arcee, Seed-OSS, ERNIE 4.5, Helium."""

from __future__ import annotations

from workers.model.config import DecoderConfig
from workers.model.families import llama
from workers.model.families.common import activation, decoder, head_dim, rms
from workers.model.families.family import Family, Raw
from workers.model.families.ropes import rope
from workers.model.names import WeightNames


def arcee(raw: Raw) -> DecoderConfig:
    """Squared ReLU without a gate."""
    mlp = dict(activation=activation(raw.get("hidden_act", "relu2")), gated=False)
    return decoder(raw, rms(raw, 1e-5), mlp=mlp, names=WeightNames(gate_up=("mlp.up_proj",)))


def seed_oss(raw: Raw) -> DecoderConfig:
    """Biases on q, k and v."""
    raw = {"head_dim": 128, **raw}
    biases = dict(qkv_bias=raw.get("attention_bias", True), output_bias=raw.get("attention_out_bias", False))
    return llama.config(raw, attention=biases)


def ernie(raw: Raw) -> DecoderConfig:
    """Neighbours rotated."""
    bias = raw.get("use_bias", False)
    raw = {"head_dim": 128, "tie_word_embeddings": True, "attention_bias": bias, "mlp_bias": bias, **raw}
    turns = rope(raw, head_dim(raw), theta=500000.0, interleaved=True)
    return decoder(raw, rms(raw, 1e-5), attention=dict(rope=turns))


def helium(raw: Raw) -> DecoderConfig:
    """Neighbours rotated."""
    raw = {"head_dim": 128, **raw}
    turns = rope(raw, head_dim(raw), theta=100000.0, interleaved=True)
    return decoder(raw, rms(raw, 1e-8), attention=dict(rope=turns, output_bias=False))


FAMILY = Family(
    "Llama variants",
    "Arcee AFM, Seed-OSS, ERNIE 4.5 (dense), Helium",
    {
        "ArceeForCausalLM": arcee,
        "SeedOssForCausalLM": seed_oss,
        "Ernie4_5ForCausalLM": ernie,
        "HeliumForCausalLM": helium,
    },
)
