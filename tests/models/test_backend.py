"""Architectures that no family reads, by transformers' own code over the paged cache: the bodies are those of families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import test_families
from tests.models.families import EVERYWHERE, LOCAL, LONGROPE, MIXED, Row, reference, rope
from workers.model.families.registry import architectures

ROWS = [
    Row("vaultgemma", "vaultgemma", dict(MIXED, head_dim=16, attn_logit_softcapping=3.0)),
    Row("granite_swa", "granite_swa", dict(MIXED)),
    Row("bitnet", "bitnet"),
    Row("jais2", "jais2"),
    Row("persimmon", "persimmon"),
    Row("biogpt", "biogpt"),
    Row("bart", "bart", dict(decoder_layers=2, encoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=96)),
    Row("roberta", "roberta", dict(is_decoder=True)),
    Row("modernbert-decoder", "modernbert-decoder", dict(local_attention=20, layer_types=[LOCAL, EVERYWHERE])),
    Row("diffllama", "diffllama"),
    Row("apertus", "apertus", rope("default")),
    Row("longrope", "apertus", LONGROPE, positions=128),
    Row("dynamic-rope", "apertus", rope("dynamic", factor=4.0)),
    Row("ernie4_5_moe", "ernie4_5_moe", dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=32)),
    Row("longcat_flash", "longcat_flash", dict(
        num_layers=1, expert_ffn_hidden_size=32, ffn_hidden_size=96, n_routed_experts=4, zero_expert_num=2, moe_topk=2,
        q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12, head_dim=8,
        num_key_value_heads=4)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_backend(row: Row, tmp_path: Path) -> None:
    assert type(reference(row)).__name__ not in architectures(), "a family reads it by now: choose another"
    test_families.test_family(row, tmp_path)
