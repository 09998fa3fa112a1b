"""Files that are cut, missing, of another kind or not what they should be: one line that names file and tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.engine.tiny import reference
from tests.loaders.files import add_sizes, write_file
from workers.model.loaders.config import read_config
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.weights import open_weights

CPU, FP32 = torch.device("cpu"), torch.float32


def read(path: Path, name: str) -> None:
    open_weights(path).get(name, (211, 48), FP32, CPU)


def test_a_missing_shard_is_named_with_its_tensor(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path, max_shard_size="40KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    (tmp_path / files["lm_head.weight"]).unlink()
    with pytest.raises(ModelLoadError, match=rf"{files['lm_head.weight']}: tensor lm_head\.weight cannot be read"):
        read(tmp_path, "lm_head.weight")


def test_a_cut_shard_is_named_with_its_tensor(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path, max_shard_size="40KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shard = tmp_path / files["lm_head.weight"]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=rf"{shard.name}: tensor lm_head\.weight cannot be read"):
        read(tmp_path, "lm_head.weight")


def test_an_index_whose_shard_lacks_the_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"b": "one.safetensors"}}')
    with pytest.raises(ModelLoadError, match=r"one\.safetensors: tensor b cannot be read"):
        read(tmp_path, "b")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": ["a"]}', "[]", "{", "\udc80"])
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json"):
        open_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}extra"])
def test_a_single_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be opened"):
        open_weights(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_checkpoints_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Without its scales such a tensor would load, and be wrong."""
    save_file({"lm_head.weight": torch.zeros(211, 48).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"tensor lm_head\.weight is (float8_e4m3fn|int8); quantized"):
        read(tmp_path, "lm_head.weight")


@pytest.mark.parametrize("left", [0.0, 0.3, 0.6])
def test_a_cut_gguf_file_says_so(left: float, tmp_path: Path) -> None:
    """At every place: in the header, in the metadata, in the tensors; never an answer from half a file."""
    path = write_file(tmp_path / "a.gguf", add_sizes)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(ModelLoadError, match=r"a\.gguf is not a readable GGUF file"):
        read_config(path)


@pytest.mark.parametrize("missing", [1, 16, 100])
def test_the_tensor_where_a_gguf_file_ends_is_named(missing: int, tmp_path: Path) -> None:
    values = np.ones((4, 32), np.float32)
    path = write_file(tmp_path / "a.gguf", add_sizes, token_embd=values, output_norm=values[0])
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ModelLoadError, match=r"a\.gguf .*tensor output_norm\.weight: it is cut off"):
        read_config(path)


def test_gguf_metadata_that_is_no_text(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", add_sizes, architecture="zzzz")
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"zz\xff\xff", 1))
    with pytest.raises(ModelLoadError, match=r"a\.gguf: metadata general\.architecture cannot be read"):
        read_config(path)


@pytest.mark.parametrize(
    "name", ["nothing", "nothing.weight", "model.layers.0.self_attn.rotary.weight", "lm_head.weight"]
)
def test_tensors_that_a_gguf_file_lacks(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=rf"a\.gguf: tensor .*{name}.* is missing"):
        read(write_file(tmp_path / "a.gguf", add_sizes), name)


def test_a_gguf_tensor_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tensor model\.embed_tokens\.weight has shape \[4, 32\].* \[211, 48\]"):
        read(write_file(tmp_path / "a.gguf", add_sizes), "model.embed_tokens.weight")


def test_a_gguf_tensor_of_another_type(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", add_sizes, token_embd=np.zeros((211, 48), np.int8))
    with pytest.raises(ModelLoadError, match=r"token_embd\.weight is I8, which is not supported; supported: BF16, F16"):
        read(path, "model.embed_tokens.weight")
