"""Small random models of any architecture that transformers has, with its own structure and a twentieth of its sizes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

VOCABULARY = 131
_MOST_PARAMETERS = 150_000_000
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    sliding_window=20,
    is_decoder=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=48,
    shared_expert_intermediate_size=48,
    decoder_layers=2,
    encoder_layers=1,
    decoder_attention_heads=4,
    encoder_attention_heads=4,
    decoder_ffn_dim=96,
    encoder_ffn_dim=96,
    ffn_dim=96,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=16,
    v_head_dim=16,
    n_group=1,
    topk_group=1,
    num_kv_shared_layers=0,
    tie_word_embeddings=False,
)
LATENT: dict[str, Any] = dict(head_dim=8, num_key_value_heads=4)
"""With attention by latents head_dim is that of the rotated part."""
TOWER: dict[str, Any] = SIZES | dict(
    depth=1, num_hidden_layers=1, num_heads=4, out_hidden_size=64, embed_dim=64, num_key_value_heads=4
)
"""Of what looks or listens, which text does not reach."""
PARTS = ("text_config", "vision_config", "audio_config")
_NEEDS: dict[str, dict[str, Any]] = {
    "codegen": dict(rotary_dim=8),
    "cohere_compass_text": dict(
        rope_parameters=dict(
            full_attention=dict(rope_type="default", rope_theta=1e4),
            sliding_attention=dict(rope_type="default", rope_theta=1e4),
        )
    ),
    "dbrx": dict(d_model=64, n_heads=4, attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4)),
    "gptj": dict(rotary_dim=8),
    "glm4_moe": dict(head_dim=16),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=20),
}
"""What an architecture's sizes ask for beyond SIZES."""


def known(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that a config has words for."""
    words = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    return {name: value for name, value in settings.items() if name in words}


def small_config(kind: Any, model_type: str) -> Any:
    """Of the model class `kind`."""
    config_class = kind.config_class
    settings = _sizes(config_class, SIZES)
    if set(PARTS) & set(config_class.sub_configs):
        usual = config_class()
        parts = {name: part for name in PARTS if isinstance(part := getattr(usual, name, None), PreTrainedConfig)}
        for name, part in parts.items():
            settings[name] = _text(part) if name == "text_config" else type(part)(**_sizes(type(part), TOWER))
    return config_class(**settings | _NEEDS.get(model_type, {}))


def _sizes(config_class: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    settings = known(config_class, sizes)
    if "qk_rope_head_dim" in settings:
        settings |= known(config_class, LATENT)
    return settings


def _text(usual: Any) -> Any:
    """Beside pictures, some rotate the parts of a head by time, height and width."""
    settings = _sizes(type(usual), SIZES)
    rope = getattr(usual, "rope_parameters", None) or {}
    if hasattr(usual, "rope_parameters") and not any(isinstance(value, dict) for value in rope.values()):
        pairs = int(SIZES["head_dim"] // 2 * rope.get("partial_rotary_factor", 1.0))
        sections = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, **rope, "mrope_section": sections}
    return type(usual)(**settings)


def small_model(architecture: str, model_type: str) -> Any:
    """Weights are wide enough that greedy choices are clear."""
    kind = getattr(transformers, architecture)
    config = small_config(kind, model_type)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in kind._from_config(config).parameters())
    if parameters > _MOST_PARAMETERS:
        raise ValueError(f"with the sizes known here it has {parameters / 1e6:.0f} million parameters")
    torch.manual_seed(7)
    model = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15)
    return model
