"""Small random models of any architecture that transformers has, with its own structure and a twentieth of its sizes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY = 131
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
)
LATENT: dict[str, Any] = dict(head_dim=8, num_key_value_heads=4)
"""With attention by latents head_dim is that of the rotated part."""
PARTS = ("text_config", "vision_config", "audio_config")
_NEEDS: dict[str, dict[str, Any]] = {
    "codegen": dict(rotary_dim=8),
    "dbrx": dict(d_model=64, n_heads=4, attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4)),
    "glm4_moe": dict(head_dim=16),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=20),
}
"""What an architecture's sizes ask for beyond SIZES."""


def known(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that a config has words for."""
    words = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    return {name: value for name, value in settings.items() if name in words}


def small_config(model_type: str) -> Any:
    config_class = CONFIG_MAPPING[model_type]
    settings = known(config_class, SIZES)
    if "qk_rope_head_dim" in settings:
        settings |= known(config_class, LATENT)
    for name, part in config_class.sub_configs.items():
        if name in PARTS and hasattr(part, "attribute_map"):
            settings[name] = known(part, SIZES)
    return config_class(**settings | _NEEDS.get(model_type, {}))


def small_model(model_type: str) -> Any:
    """Weights are wide enough that greedy choices are clear."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(small_config(model_type), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15)
    return model
