"""Checkpoints as they are found: base models, decoders inside larger models, renamed heads, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.families import MIXED, ROWS, SIZES, Row, reference
from tests.models.test_families import PROMPTS, logits, served, theirs
from workers.model.families.common import decoder, rms
from workers.model.families.registry import FAMILIES, UnsupportedModel, architectures, decoder_config
from workers.model.loaders.errors import ModelLoadError


def saved(name: str, folder: Path) -> tuple[Row, Any]:
    row = next(row for row in ROWS if row.name == name)
    model = reference(row)
    model.save_pretrained(folder)
    return row, model


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def check_logits(folder: Path, row: Row, model: Any) -> None:
    got, want = logits(served(folder, row), PROMPTS[-1]), theirs(model, PROMPTS[-1])
    assert (got - want).norm() / want.norm() < 1e-4


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("gemma3", "model.")]
)
def test_names_without_the_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    row, model = saved(name, tmp_path)
    edit(tmp_path, lambda tensors: {key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    check_logits(tmp_path, row, model)


def test_the_old_name_of_a_head(tmp_path: Path) -> None:
    row, model = saved("pythia", tmp_path)
    edit(tmp_path, lambda tensors: {key.replace("lm_head", "embed_out"): tensor for key, tensor in tensors.items()})
    check_logits(tmp_path, row, model)


def test_the_text_part_of_a_larger_model(tmp_path: Path) -> None:
    """Under the names of the hub, and with a config that leaves out what is usual."""
    sizes = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, vocab_size=262208)
    row, model = saved("gemma3", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": raw}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    edit(tmp_path, lambda tensors: {f"language_model.{key}": tensor for key, tensor in tensors.items()})
    check_logits(tmp_path, row, model)
    short = {key: value for key, value in raw.items() if key not in sizes}
    config = decoder_config({**outer, "text_config": short})
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == tuple(sizes.values())


def test_the_text_part_of_mistral_small_3(tmp_path: Path) -> None:
    row, model = saved("mistral", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    outer = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": raw}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    edit(tmp_path, lambda tensors: {f"language_model.{key}": tensor for key, tensor in tensors.items()})
    check_logits(tmp_path, row, model)
    with pytest.raises(UnsupportedModel, match="text_config of type 'ministral3' is not supported"):
        decoder_config({**outer, "text_config": {**raw, "model_type": "ministral3"}})
    assert not decoder_config(outer).tie_embeddings
    assert decoder_config({**outer, "tie_word_embeddings": True}).tie_embeddings


def test_experts_of_one_tensor(tmp_path: Path) -> None:
    """As models are in memory, and as random weights are made."""
    row, model = saved("qwen3-moe", tmp_path)

    def stack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = {key: value for key, value in model.state_dict().items() if ".experts." in key}
        return experts | {key: value for key, value in tensors.items() if ".experts." not in key}

    edit(tmp_path, stack)
    check_logits(tmp_path, row, model)


def test_experts_in_mxfp4(tmp_path: Path) -> None:
    """As OpenAI saved them: blocks of 32 numbers of four bits, low ones first, with a power of two for each block."""
    row, model = saved("gpt-oss", tmp_path)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    quantized = {}
    for name, weight in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32))
            scales = torch.randint(122, 126, (experts, outputs, inputs // 32))
            weight.data = (table[codes] * 2.0 ** (scales - 127)[..., None]).flatten(2).mT.contiguous()
            quantized[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            quantized[f"{name}_scales"] = scales.to(torch.uint8)
    dropped = {name.removesuffix("_blocks") for name in quantized}
    edit(tmp_path, lambda tensors: quantized | {key: tensors[key] for key in tensors.keys() - dropped})
    check_logits(tmp_path, row, model)


@pytest.mark.parametrize(("name", "tensor"), [
    ("falcon-40b", "transformer.h.1.self_attention.query_key_value.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.bias"),
    ("gemma2", "model.layers.2.post_feedforward_layernorm.weight"),
    ("opt-350m", "model.decoder.project_out.weight"),
    ("mixtral", "model.layers.1.block_sparse_moe.experts.4.w3.weight"),
])  # fmt: skip
def test_missing_and_misshapen_tensors_are_named(name: str, tensor: str, tmp_path: Path) -> None:
    row, _ = saved(name, tmp_path)
    edit(tmp_path, lambda tensors: {**tensors, tensor: tensors[tensor][:-1]})
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors: tensor {tensor} has shape .* asks for"):
        served(tmp_path, row)
    edit(tmp_path, lambda tensors: {key: value for key, value in tensors.items() if key != tensor})
    with pytest.raises(ModelLoadError, match=f"tensor {tensor} is missing"):
        served(tmp_path, row)


@pytest.mark.parametrize(("architecture", "changes", "message"), [
    ("LlamaForCausalLM", dict(hidden_act="cosine"), "activation 'cosine' is not supported; supported: silu"),
    ("LlamaForCausalLM", dict(hidden_size=None), "the model's config"),
    ("BloomForCausalLM", dict(apply_residual_connection_post_layernorm=True), "apply_residual_connection"),
    ("Gemma3ForCausalLM", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    ("StableLmForCausalLM", dict(qk_layernorm=True), "qk_layernorm"),
    ("LlamaForCausalLM", dict(num_attention_heads=6, num_key_value_heads=4), "6 heads of size 10 cannot share 4 kv heads"),
    ("LlamaForCausalLM", dict(num_attention_heads=0), "cannot be understood: .*zero"),
    ("LlamaForCausalLM", dict(vocab_size="many"), "cannot be understood"),
    ("LlamaForCausalLM", dict(head_dim=15), "heads of an odd size are not supported; the config asks for 15"),
    ("LlamaForCausalLM", dict(num_hidden_layers=0), "asks for no layers"),
    ("LlamaForCausalLM", dict(intermediate_size=0), "asks for intermediate_size 0"),
    ("GPTJForCausalLM", dict(rotary_dim=32), "rotates 32 of 16 values of a head"),
    ("Phi3ForCausalLM", dict(rope_scaling=dict(type="longrope", short_factor=[1.0], long_factor=[1.0] * 8)),
     "longrope needs short_factor and long_factor of 8 numbers; the config has 1 and 8"),
    ("MixtralForCausalLM", dict(hidden_act="gelu", num_local_experts=4), "experts with activation 'gelu'"),
    ("OlmoeForCausalLM", dict(num_experts=4, clip_qkv=8.0), "clip_qkv"),
    ("MixtralForCausalLM", {}, "the model's config lacks 'num_experts'"),
    ("GptOssForCausalLM", dict(quantization_config=dict(quant_method="gptq")), "quantized by gptq"),
    ("NobodysForCausalLM", {}, "architecture NobodysForCausalLM is not supported; supported: LlamaForCausalLM"),
])  # fmt: skip
def test_what_a_family_cannot_do_is_refused(architecture: str, changes: dict[str, Any], message: str) -> None:
    raw = {**SIZES, "architectures": [architecture], **changes}
    if raw["hidden_size"] is None:
        del raw["hidden_size"]
    with pytest.raises(UnsupportedModel, match=message):
        decoder_config(raw)


def test_every_architecture_has_a_row() -> None:
    """The table's models name those that the registry serves; a text part of a larger model is tested above."""
    tested = {type(reference(row)).__name__ for row in ROWS} | {
        "Gemma3ForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
    }
    assert tested >= set(architectures())
    assert sum(len(family.architectures) for family in FAMILIES) == len(architectures())


def test_old_words_of_falcon_and_bloom() -> None:
    new = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
    old = dict(vocab_size=100, n_embed=64, n_layer=2, n_head=4)
    for name in ("FalconForCausalLM", "BloomForCausalLM"):
        assert decoder_config({"architectures": [name], **old}) == decoder_config({"architectures": [name], **new})


def test_layers_are_told_apart() -> None:
    raw = {**SIZES, **MIXED, "architectures": ["Cohere2ForCausalLM"]}
    windows = [(layer.attention.window, layer.attention.rope is None) for layer in decoder_config(raw).layers]
    assert windows == [(20, False), (0, True), (20, False)]
    assert decoder(raw, rms(raw)).kv_values_per_token == 2 * 3 * 2 * 16


OLD_WORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        dict(rope_theta=2e6, rope_local_base_freq=5e3, rope_scaling=dict(rope_type="linear", factor=8.0)),
        dict(rope_parameters={
            "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=2e6),
            "sliding_attention": dict(rope_type="default", rope_theta=5e3),
        }),
    ),
    "pythia": (
        dict(rotary_pct=0.5, rotary_emb_base=2e4),
        dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5, rope_theta=2e4)),
    ),
    "phi4-mini": (
        dict(rope_theta=2e4, partial_rotary_factor=0.75, rope_scaling=None),
        dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.75, rope_theta=2e4)),
    ),
    "cohere2": (dict(sliding_window_pattern=3), dict(layer_types=["sliding_attention"] * 2 + ["full_attention"])),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OLD_WORDS))
def test_configs_of_before_transformers_5(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    old, new = OLD_WORDS[name]
    plain = {key: value for key, value in raw.items() if key not in ("rope_parameters", *new)}
    assert decoder_config({**plain, **old}) == decoder_config({**raw, **new})
