"""Configs as they are published, in the words of their time: the tensors that are asked for are as many as the model has."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.model.decoder import Decoder
from workers.model.families.registry import decoder_config


def gpt2_words(width: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    return dict(n_embd=width, n_layer=layers, n_head=heads, **rest)


def words(width: int, inner: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    return dict(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, **rest
    )  # fmt: skip


MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", 124_439_808, gpt2_words(768, 12, 12, n_positions=1024, vocab_size=50257)),
    "gpt-neo-125m": ("GPTNeoForCausalLM", 125_198_592, dict(
        hidden_size=768, num_layers=12, num_heads=12, intermediate_size=None, vocab_size=50257,
        attention_types=[[["global", "local"], 6]], max_position_embeddings=2048)),
    "gpt-j-6b": ("GPTJForCausalLM", 6_050_882_784, gpt2_words(
        4096, 28, 16, n_positions=2048, rotary_dim=64, vocab_size=50400, tie_word_embeddings=False)),
    "opt-350m": ("OPTForCausalLM", 331_196_416, dict(
        hidden_size=1024, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16, word_embed_proj_dim=512,
        do_layer_norm_before=False, vocab_size=50272, max_position_embeddings=2048)),
    "pythia-70m": ("GPTNeoXForCausalLM", 70_426_624, words(
        512, 2048, 6, 8, vocab_size=50304, rotary_pct=0.25, rotary_emb_base=10000, tie_word_embeddings=False)),
    "bloom-560m": ("BloomForCausalLM", 559_214_592, dict(
        n_embed=1024, n_layer=24, num_attention_heads=16, vocab_size=250880)),
    "falcon-7b": ("FalconForCausalLM", 6_921_720_704, dict(
        hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, multi_query=True, vocab_size=65024)),
    "llama-3.1-8b": ("LlamaForCausalLM", 8_030_261_248, words(
        4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0)),
    "mistral-7b": ("MistralForCausalLM", 7_241_732_096, words(
        4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=32000, sliding_window=4096)),
    "qwen2.5-0.5b": ("Qwen2ForCausalLM", 494_032_768, words(
        896, 4864, 24, 14, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, use_sliding_window=False)),
    "qwen3-0.6b": ("Qwen3ForCausalLM", 596_049_920, words(
        1024, 3072, 28, 16, num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)),
    "gemma-2b": ("GemmaForCausalLM", 2_506_172_416, words(
        2048, 16384, 18, 8, num_key_value_heads=1, head_dim=256, vocab_size=256000, hidden_act="gelu")),
    "gemma-2-2b": ("Gemma2ForCausalLM", 2_614_341_888, words(
        2304, 9216, 26, 8, num_key_value_heads=4, head_dim=256, vocab_size=256000)),
    "gemma-3-1b": ("Gemma3ForCausalLM", 999_885_952, words(
        1152, 6912, 26, 4, num_key_value_heads=1, head_dim=256, vocab_size=262144, sliding_window_pattern=6)),
    "phi-2": ("PhiForCausalLM", 2_779_683_840, words(2560, 10240, 32, 32, vocab_size=51200, partial_rotary_factor=0.4)),
    "phi-3-mini": ("Phi3ForCausalLM", 3_821_079_552, words(3072, 8192, 32, 32, vocab_size=32064, sliding_window=2047)),
    "command-r7b": ("Cohere2ForCausalLM", 8_028_033_024, words(
        4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=256000, sliding_window_pattern=4)),
    "starcoder2-3b": ("Starcoder2ForCausalLM", 3_030_371_328, words(
        3072, 12288, 30, 24, num_key_value_heads=2, vocab_size=49152, use_bias=True, hidden_act="gelu_pytorch_tanh")),
    "olmo-2-7b": ("Olmo2ForCausalLM", 7_298_617_344, words(4096, 11008, 32, 32, vocab_size=100352)),
    "granite-3.1-2b": ("GraniteForCausalLM", 2_533_531_648, words(
        2048, 8192, 40, 32, num_key_value_heads=8, vocab_size=49155, tie_word_embeddings=True)),
    "glm-4-9b": ("GlmForCausalLM", 9_399_951_360, words(
        4096, 13696, 40, 32, num_key_value_heads=2, head_dim=128, vocab_size=151552, attention_bias=True)),
    "stablelm-3b": ("StableLmForCausalLM", 2_795_443_200, words(2560, 6912, 32, 32, vocab_size=50304)),
}  # fmt: skip


@pytest.mark.parametrize("model", list(MODELS))
def test_parameters(model: str) -> None:
    architecture, published, raw = MODELS[model]
    asked: dict[str, int] = {}

    def get(name: str, shape: tuple[int, ...]) -> Tensor:
        asked[name] = prod(shape)
        return torch.empty(shape, device="meta")

    Decoder(decoder_config({**raw, "architectures": [architecture]}), get, max_positions=8)
    assert sum(asked.values()) == published
