"""Folders and GGUF files: the same weights by either road, and one clear line where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.engine.tiny import reference
from workers.model.loaders.config import read_config, read_generation_defaults
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.export import export_folder
from workers.model.loaders.gguf_file import gguf_name
from workers.model.loaders.resolve import _HUB_FILES, _NOT_HUB_FILES, resolve
from workers.model.loaders.tokenizer import load_tokenizer
from workers.model.loaders.weights import DummyWeights, open_weights

CPU = torch.device("cpu")
Q, T = gguf.GGMLQuantizationType, torch.float32


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama files keep: halves interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, kind: Q) -> dict[str, np.ndarray]:
    """The model as a llama GGUF file, its matrices quantized to `kind` where their rows allow it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(2)
    written = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        stored = permute(values, heads) if ("q_proj" in name or "k_proj" in name) else values
        chosen = kind if values.ndim == 2 and values.shape[1] % 32 == 0 else Q.F32
        raw = gguf.quants.quantize(np.ascontiguousarray(stored), chosen)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=chosen)
        back = gguf.quants.dequantize(raw, chosen).reshape(values.shape)
        written[name] = unpermute(back, heads) if stored is not values else back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q8_0])
def test_gguf_tensors_come_back_under_their_names_and_in_order(kind: Q, tmp_path: Path) -> None:
    model = reference()
    path = tmp_path / "tiny.gguf"
    written = write_gguf(path, model, kind)
    source = open_weights(path)
    for name, tensor in model.state_dict().items():
        got = source.get(name, tuple(tensor.shape), T, CPU)
        assert torch.equal(got, torch.from_numpy(written[name]).to(T)), name
        assert (got - tensor).norm() / tensor.norm() < 0.15
    raw = read_config(path)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        assert raw[key] == getattr(model.config, key)
    assert read_generation_defaults(path).eos_token_ids == [2]


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K])
def test_k_quants_are_read(kind: Q, tmp_path: Path) -> None:
    """The gguf package reads these types and does not write them: random valid blocks, dequantized by it."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, size=(4, size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = open_weights(tmp_path / "k.gguf").get("model.embed_tokens.weight", (4, block), T, CPU)
    assert torch.equal(got, torch.from_numpy(gguf.quants.dequantize(raw, kind)))


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_folders_single_and_sharded(shard: str, tmp_path: Path) -> None:
    model = reference("qwen3")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    source = open_weights(tmp_path)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied, so not stored
            assert torch.equal(source.get(name, tuple(tensor.shape), T, CPU), tensor)
    assert read_config(tmp_path)["architectures"] == ["Qwen3ForCausalLM"]
    assert read_generation_defaults(tmp_path).eos_token_ids == [2]


def test_generation_config_gives_ends_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[5, 6], temperature=0.6, top_k=20)))
    defaults = read_generation_defaults(tmp_path)
    assert defaults.eos_token_ids == [5, 6]
    assert defaults.sampling == {"temperature": 0.6, "top_k": 20}


def test_dummy_weights_are_the_same_for_the_same_seed() -> None:
    first, second = DummyWeights(1), DummyWeights(1)
    assert torch.equal(first.get("a.weight", (8, 8), T, CPU), second.get("a.weight", (8, 8), T, CPU))
    assert not torch.equal(first.get("a.weight", (8, 8), T, CPU), first.get("b.weight", (8, 8), T, CPU))
    assert torch.equal(first.get("input_layernorm.weight", (4,), T, CPU), torch.ones(4))


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    model = reference()
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    source = open_weights(folder)
    with pytest.raises(ModelLoadError, match=r"tensor nothing\.weight is missing"):
        source.get("nothing.weight", (1,), T, CPU)
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight has shape \[48\], the config asks for \[7\]"):
        source.get("model.norm.weight", (7,), T, CPU)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be opened"):
        open_weights(folder)
    write_gguf(tmp_path / "cut.gguf", model, Q.F32)
    content = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf"):
        open_weights(tmp_path / "cut.gguf").get("lm_head.weight", (211, 48), T, CPU)


@pytest.mark.parametrize(
    ("name", "word"), [("nowhere", "no model at"), (".", r"no config\.json"), ("a.txt", r"\.gguf")]
)
def test_names_that_are_no_model(name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x")
    with pytest.raises(ModelLoadError, match=word):
        resolve(name)


def test_a_hub_id_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert resolve("org/tiny", cache_dir=tmp_path) == snapshot
    (snapshot / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"'org/tiny' on the HuggingFace hub has no config\.json"):
        resolve("org/tiny", cache_dir=tmp_path)
    with pytest.raises(ModelLoadError, match="org/other"):
        resolve("org/other", cache_dir=tmp_path)


def test_weights_are_downloaded_once_and_in_one_layout() -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja"]
    wanted += ["modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    others = ["consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "model.gguf", "README.md"]
    found = filter_repo_objects(wanted + others, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_HUB_FILES)
    assert list(found) == wanted


@pytest.mark.parametrize("error", [httpx.ConnectError(""), OSError("disk full\nmore"), ValueError("bad name")])
def test_a_hub_that_fails_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelLoadError, match=r"cannot get 'org/tiny' from the HuggingFace hub: [^\n]+$"):
        resolve("org/tiny", cache_dir=tmp_path)


@pytest.mark.model
def test_the_demo_model_by_both_roads(tmp_path: Path) -> None:
    """GGUF against the folder written from it: tensors, token ids, chat template; and transformers' reading of both."""
    path = resolve("demo")
    folder = export_folder(path, tmp_path / "hf", torch.float32)
    ours, theirs = open_weights(path), open_weights(folder)
    for name, shape in {
        "model.embed_tokens.weight": (49152, 576),
        "model.layers.0.self_attn.q_proj.weight": (576, 576),
        "model.layers.29.self_attn.k_proj.weight": (192, 576),
        "model.layers.7.mlp.down_proj.weight": (576, 1536),
    }.items():
        assert torch.equal(ours.get(name, shape, T, CPU), theirs.get(name, shape, T, CPU))
    first, second = load_tokenizer(path), load_tokenizer(folder)
    for text in (
        "Hello, world!",
        "1234567 + 89",
        "naïve café 東京 🙂‍↔️",
        "  tabs\tand\n\nlines ",
        "def f(x):\n    return x",
    ):
        ids = first(text)["input_ids"]
        assert ids == second(text)["input_ids"]
        assert first.decode(ids) == text
    assert all(len(first.tokenize(digits)) == len(digits) for digits in ("7", "42", "123456"))
    messages = [{"role": "user", "content": "Hi"}]
    prompt = first.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == second.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.model
def test_the_demo_model_is_what_transformers_reads_in_it() -> None:
    """Every tensor, by transformers' own GGUF reader."""
    path = resolve("demo")
    raw = read_config(path)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{key: raw[key] for key in raw if key != "architectures"}))
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    assert set(theirs) == {name for name, _ in model.named_parameters()}
    source = open_weights(path)
    for name, parameter in model.named_parameters():
        got = source.get(name, tuple(parameter.shape), T, CPU)
        assert torch.allclose(got, theirs[name].to(T), rtol=0, atol=1e-6), name
