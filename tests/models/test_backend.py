"""Architectures that no family reads, by transformers' own code over the paged cache: the bodies are those of families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import test_families
from tests.models.families import EVERYWHERE, LOCAL, MIXED, Row

ROWS = [
    Row("ernie4_5", "ernie4_5", dict(head_dim=16)),
    Row("vaultgemma", "vaultgemma", dict(MIXED, head_dim=16, attn_logit_softcapping=3.0)),
    Row("granite_swa", "granite_swa", dict(MIXED)),
    Row("olmo3", "olmo3", dict(MIXED)),
    Row("bitnet", "bitnet"),
    Row("jais2", "jais2"),
    Row("persimmon", "persimmon"),
    Row("biogpt", "biogpt"),
    Row("bart", "bart", dict(decoder_layers=2, encoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=96)),
    Row("roberta", "roberta", dict(is_decoder=True)),
    Row("modernbert-decoder", "modernbert-decoder", dict(local_attention=20, layer_types=[LOCAL, EVERYWHERE])),
    Row("deepseek_v3", "deepseek_v3", dict(num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8,
                                           qk_nope_head_dim=16, v_head_dim=12, n_routed_experts=4, n_group=1, topk_group=1,
                                           num_experts_per_tok=2, first_k_dense_replace=1, moe_intermediate_size=32)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_backend(row: Row, tmp_path: Path) -> None:
    test_families.test_family(row, tmp_path)
