"""The table of families: for each a small random model of transformers' own, with its real structure switched on.

A row is a name, the model_type of transformers, and what differs from SIZES.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZES: dict[str, Any] = dict(
    vocab_size=131,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LOCAL, EVERYWHERE = "sliding_attention", "full_attention"
MIXED: dict[str, Any] = dict(layer_types=[LOCAL, EVERYWHERE, LOCAL], num_hidden_layers=3, sliding_window=20)


@dataclass(frozen=True)
class Row:
    """`changes` are the config's; `positions`: the context that is served, where it is not all; `attention`: transformers'
    implementation of it."""

    name: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    positions: int | None = None
    attention: str = "eager"


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **settings))


LONGROPE = rope(
    "longrope",
    original_max_position_embeddings=128,
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[1.0 + 0.9 * i for i in range(8)],
)
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=40, num_experts_per_tok=2)
ROUTED: dict[str, Any] = dict(EXPERTS, n_routed_experts=8, n_group=4, topk_group=2, n_shared_experts=1,
                              routed_scaling_factor=1.5, first_k_dense_replace=1, norm_topk_prob=True)  # fmt: skip
LATENT: dict[str, Any] = dict(num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=32, qk_rope_head_dim=8,
                              qk_nope_head_dim=16, v_head_dim=12)  # fmt: skip
ROWS = [
    Row("llama", "llama", dict(head_dim=24, attention_bias=True, mlp_bias=True)),
    Row("llama3-rope", "llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=64)),
    Row("linear-rope", "llama", rope("linear", factor=4.0)),
    Row("dynamic-rope", "llama", rope("dynamic", factor=4.0)),
    Row("yarn-rope", "qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    Row("mistral", "mistral", dict(sliding_window=20)),
    Row("qwen2", "qwen2", dict(use_sliding_window=True, sliding_window=20, max_window_layers=1, tie_word_embeddings=True)),
    Row("qwen3", "qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    Row("gemma", "gemma", dict(head_dim=24, num_key_value_heads=1)),
    Row("gemma2", "gemma2", dict(MIXED, head_dim=24, query_pre_attn_scalar=40, attn_logit_softcapping=3.0,
                                 final_logit_softcapping=5.0)),
    Row("gemma3", "gemma3_text", dict(MIXED, head_dim=24, query_pre_attn_scalar=40)),
    Row("gemma3-scaled", "gemma3_text", dict(MIXED, head_dim=24, rope_parameters={
        EVERYWHERE: dict(rope_type="linear", factor=8.0, rope_theta=1e6), LOCAL: dict(rope_type="default", rope_theta=1e4),
    })),
    Row("phi3", "phi3", dict(sliding_window=20)),
    Row("phi3-longrope-short", "phi3", dict(LONGROPE, original_max_position_embeddings=128), positions=128),
    Row("phi4-mini", "phi3", dict(rope("default", partial_rotary_factor=0.75), tie_word_embeddings=True)),
    Row("falcon-7b", "falcon", dict(multi_query=True, parallel_attn=True)),
    Row("falcon-40b", "falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    Row("falcon-11b", "falcon", dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    Row("falcon-rw", "falcon", dict(alibi=True, multi_query=False, parallel_attn=False, bias=True),
        attention="sdpa"),  # the eager one adds the biases twice
    Row("cohere", "cohere", dict(use_qk_norm=True, logit_scale=0.25)),
    Row("cohere2", "cohere2", dict(MIXED)),
    Row("bloom", "bloom"),
    Row("bloom-6-heads", "bloom", dict(hidden_size=96, num_attention_heads=6)),
    Row("gpt2", "gpt2", dict(scale_attn_by_inverse_layer_idx=True)),
    Row("gpt-bigcode", "gpt_bigcode"),
    Row("gptj", "gptj", dict(rotary_dim=8)),
    Row("pythia", "gpt_neox", dict(hidden_act="gelu")),
    Row("gpt-neox-sequential", "gpt_neox", dict(use_parallel_residual=False, attention_bias=False)),
    Row("opt", "opt", dict(ffn_dim=96)),
    Row("opt-350m", "opt", dict(ffn_dim=96, do_layer_norm_before=False, word_embed_proj_dim=32)),
    Row("starcoder2", "starcoder2", dict(sliding_window=20)),
    Row("olmo", "olmo", dict(clip_qkv=0.6)),
    Row("olmo2", "olmo2"),
    Row("granite", "granite", dict(embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.4,
                                   attention_multiplier=0.2)),
    Row("glm", "glm", dict(head_dim=16)),
    Row("glm4", "glm4", dict(head_dim=16)),
    Row("phi", "phi", dict(qk_layernorm=True)),
    Row("stablelm", "stablelm", dict(use_qkv_bias=True)),
    Row("ministral", "ministral", dict(MIXED, head_dim=16)),
    Row("gpt-neo", "gpt_neo", dict(attention_types=[[["global", "local"], 1]], window_size=20)),
    Row("olmo3", "olmo3", dict(MIXED, rope_parameters={
        EVERYWHERE: dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=1e4),
        LOCAL: dict(rope_type="default", rope_theta=1e4),
    })),
    Row("nemotron", "nemotron", dict(hidden_act="relu2")),
    Row("exaone4", "exaone4", dict(MIXED)),
    Row("exaone4-small", "exaone4", dict(sliding_window=None, layer_types=[EVERYWHERE] * 2)),
    Row("smollm3", "smollm3", dict(no_rope_layer_interval=2)),
    Row("smollm3-sliding", "smollm3", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=20)),
    Row("mpt", "mpt", dict(max_seq_len=256, attn_config=dict(clip_qkv=1.0, softmax_scale=0.2))),
    Row("arcee", "arcee", dict(attention_bias=True)),
    Row("seed-oss", "seed_oss", dict(head_dim=16)),
    Row("ernie", "ernie4_5", dict(head_dim=16, use_bias=True)),
    Row("helium", "helium", dict(head_dim=16)),
    Row("stablelm-parallel", "stablelm", dict(use_parallel_residual=True)),
    Row("granite-moe", "granitemoe", dict(num_local_experts=6, embedding_multiplier=3.0, logits_scaling=4.0,
                                          residual_multiplier=0.4, attention_multiplier=0.2)),
    Row("mixtral", "mixtral", dict(num_local_experts=6, sliding_window=20)),
    Row("qwen2-moe", "qwen2_moe", dict(EXPERTS, num_experts=6, shared_expert_intermediate_size=48,
                                       mlp_only_layers=[0])),
    Row("qwen3-moe", "qwen3_moe", dict(EXPERTS, num_experts=6, head_dim=16, norm_topk_prob=True)),
    Row("olmoe", "olmoe", dict(num_experts=6, num_experts_per_tok=2)),
    Row("glm4-moe", "glm4_moe", dict(ROUTED, head_dim=16, use_qk_norm=True)),
    Row("gpt-oss", "gpt_oss", dict(rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
                                   num_local_experts=6, num_experts_per_tok=2, head_dim=16, sliding_window=20)),
    Row("deepseek-v2", "deepseek_v2", dict(ROUTED | LATENT, topk_method="group_limited_greedy")),
    Row("deepseek-v2-lite", "deepseek_v2", dict(ROUTED | LATENT, q_lora_rank=None)),
    Row("deepseek-v3", "deepseek_v3", dict(ROUTED | LATENT, **rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.7,
                                                                  original_max_position_embeddings=64))),
    Row("dots1", "dots1", dict(ROUTED, head_dim=16)),
]  # fmt: skip


def known(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that a config has words for."""
    words = {f.name for f in fields(config_class)} | set(config_class.attribute_map)
    return {name: value for name, value in settings.items() if name in words}


def reference(row: Row) -> Any:
    """transformers' model, with weights wide enough that greedy choices are clear."""
    torch.manual_seed(7)
    config_class = CONFIG_MAPPING[row.model_type]
    config = config_class(**known(config_class, SIZES) | row.changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=row.attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15)
    return model
