"""A GGUF file's metadata in the words of config.json."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.loaders.files import add_sizes, write_file
from workers.model.families.registry import decoder_config
from workers.model.loaders.config import read_config
from workers.model.loaders.errors import ModelLoadError
from workers.model.rope import inverse_frequencies

THETA, HEAD_DIM = 500000.0, 64


def llama3_frequencies(factor: float, original: int = 8192) -> torch.Tensor:
    """[head_dim / 2] of Llama 3, by transformers."""
    settings = dict(rope_type="llama3", rope_theta=THETA, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
    settings["original_max_position_embeddings"] = original
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=settings
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return frequencies


def rope_factors(frequencies: torch.Tensor) -> np.ndarray:
    """What GGUF files keep: by how much the plain frequencies are to be divided."""
    plain = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    return (plain / frequencies).numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_is_recognized_by_its_factors(factor: float, tmp_path: Path) -> None:
    expected = llama3_frequencies(factor)
    path = write_file(tmp_path / "a.gguf", add_sizes, rope_freqs=rope_factors(expected))
    raw = read_config(path)
    assert raw["rope_scaling"]["rope_type"] == "llama3"
    assert raw["rope_scaling"]["factor"] == factor
    rope = decoder_config(raw).attention.rope
    assert rope is not None
    assert torch.allclose(inverse_frequencies(rope, 8192), expected, rtol=1e-5)


def test_other_rope_factors_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", add_sizes, rope_freqs=rope_factors(llama3_frequencies(8.0, original=4096)))
    with pytest.raises(ModelLoadError, match=r"a\.gguf: tensor rope_freqs\.weight holds other factors"):
        read_config(path)


def test_rope_factors_of_one_change_nothing(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", add_sizes, rope_freqs=np.ones(HEAD_DIM // 2, np.float32))
    assert "rope_scaling" not in read_config(path)


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        add_sizes(writer)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    assert read_config(write_file(tmp_path / "a.gguf", fill))["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("bias", [False, True])
def test_biases_of_a_llama_are_those_of_the_file(bias: bool, tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        add_sizes(writer)
        for part in ("attn_q", "ffn_up") if bias else ():
            writer.add_tensor(f"blk.0.{part}.bias", np.zeros(256, np.float32))

    raw = read_config(write_file(tmp_path / "a.gguf", fill))
    assert (raw["attention_bias"], raw["mlp_bias"]) == (bias, bias)


def fill_experts(writer: gguf.GGUFWriter) -> None:
    add_sizes(writer)
    writer.add_expert_count(8)


def fill_part(writer: gguf.GGUFWriter) -> None:
    add_sizes(writer)
    writer.add_uint16("split.count", 3)


def fill_sizes_but_one(writer: gguf.GGUFWriter) -> None:
    writer.add_head_count(4)


@pytest.mark.parametrize(
    ("fill", "architecture", "word"),
    [
        (add_sizes, "mamba", "architecture mamba is not supported; supported: llama, qwen2, qwen3"),
        (fill_experts, "llama", "mixtures of experts are not supported"),
        (fill_part, "llama", "is one of 3 parts"),
        (fill_sizes_but_one, "llama", r"metadata llama\.embedding_length is missing"),
    ],
)
def test_files_of_models_that_are_not_served(fill: object, architecture: str, word: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", fill, architecture)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=rf"a\.gguf.*{word}"):
        read_config(path)
