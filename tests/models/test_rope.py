"""Rope kinds against transformers' own frequencies; and contexts that are longer than those the model was trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models.families import LONGROPE, Row, reference, rope
from tests.models.test_families import GREEDY, PROMPTS, check_greedy, served
from workers.model.config import RopeConfig
from workers.model.families.ropes import rope as read_rope
from workers.model.rope import head_order, inverse_frequencies, rotation_tables

FACTORS = dict(short_factor=[1.0 + 0.1 * i for i in range(32)], long_factor=[1.0 + 0.9 * i for i in range(32)])
KINDS: dict[str, dict[str, Any]] = {
    "linear": dict(factor=4.0),
    "dynamic": dict(factor=4.0),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512),
    "yarn": dict(factor=4.0, original_max_position_embeddings=1024),
    "yarn-without-factor": dict(rope_type="yarn", factor=None, original_max_position_embeddings=512),
    "yarn-untruncated": dict(
        rope_type="yarn", factor=40.0, beta_fast=16, beta_slow=2, truncate=False, mscale=0.7, mscale_all_dim=1.0,
        original_max_position_embeddings=512,
    ),
    "yarn-given": dict(rope_type="yarn", factor=4.0, attention_factor=0.9, original_max_position_embeddings=512),
    "longrope": dict(original_max_position_embeddings=512, **FACTORS),
    "longrope-given": dict(rope_type="longrope", attention_factor=1.3, original_max_position_embeddings=512, **FACTORS),
}  # fmt: skip


@pytest.mark.parametrize("length", [256, 2048, 8192])
@pytest.mark.parametrize("kind", list(KINDS))
def test_frequencies_and_magnitudes(kind: str, length: int) -> None:
    settings = {"rope_type": kind, "rope_theta": 5e4, **KINDS[kind]}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=2048, rope_parameters=dict(settings)
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"), seq_len=length)
    ours = read_rope(dict(max_position_embeddings=2048, rope_parameters=settings), 64)
    torch.testing.assert_close(inverse_frequencies(ours, length), frequencies, rtol=1e-5, atol=0)
    assert ours.magnitude == pytest.approx(magnitude)


def test_old_spelling() -> None:
    """Of configs that were saved before rope_parameters."""
    raw = dict(max_position_embeddings=4096, rope_theta=5e5, rope_scaling=dict(type="linear", factor=2.0))
    assert read_rope(raw, 64) == RopeConfig(
        theta=5e5, dim=64, kind="linear", factor=2.0, original_max_position=4096
    )  # fmt: skip
    su = dict(rope_scaling=dict(type="su", **FACTORS), original_max_position_embeddings=1024)
    assert read_rope({**raw, **su}, 64).kind == "longrope"


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="rope type 'spiral' is not supported; supported: default, linear"):
        read_rope(dict(rope_scaling=dict(rope_type="spiral")), 64)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [8, 12, 16])
def test_reordered_heads_turn_as_the_checkpoint_says(dim: int, interleaved: bool) -> None:
    """A head of 16 values at position 3, by the definition on the checkpoint's order."""
    config = RopeConfig(theta=100.0, dim=dim, interleaved=interleaved, magnitude=1.5)
    head = torch.randn(16, generator=torch.Generator().manual_seed(0))
    angles = 3 * 100.0 ** (-torch.arange(0, dim, 2) / dim)
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    want = head.clone()
    want[first] = 1.5 * (head[first] * angles.cos() - head[second] * angles.sin())
    want[second] = 1.5 * (head[second] * angles.cos() + head[first] * angles.sin())
    order = head_order(config, 16)
    order = torch.arange(16) if order is None else order
    cos, sin = (table[3] for table in rotation_tables(config, 16, 4))
    x1, x2 = head[order].chunk(2)
    got = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin))
    torch.testing.assert_close(got, want[order])


@pytest.mark.parametrize("row", [
    Row("longrope", "phi3", dict(LONGROPE, original_max_position_embeddings=128)),
    Row("yarn", "llama", rope("yarn", factor=2.0, original_max_position_embeddings=128)),
], ids=lambda row: row.name)  # fmt: skip
def test_beyond_the_trained_context(row: Row, tmp_path: Path) -> None:
    """Transformers takes the long factors once a context has passed 128 tokens."""
    model = reference(row)
    model.save_pretrained(tmp_path)
    prompt = (PROMPTS[-1] * 4)[:140]
    (output,) = served(tmp_path, row).generate([prompt], GREEDY)
    check_greedy(model, prompt, output.token_ids)


def test_dynamic_rope_may_be_asked_for_more_than_it_was_trained_for(tmp_path: Path) -> None:
    row = Row("dynamic", "llama", dict(rope("dynamic", factor=4.0), max_position_embeddings=64), positions=200)
    reference(row).save_pretrained(tmp_path)
    llm = served(tmp_path, row)
    assert llm.ready.max_model_len == 200
    config = llm.engine.runner.model.config.attention.rope
    assert config is not None
    assert llm.engine.runner.model.tables[0][0].shape[0] == 200
    assert not torch.equal(inverse_frequencies(config, 200), inverse_frequencies(config, 64))
    assert served(tmp_path, Row("plain", "llama")).ready.max_model_len == 64
