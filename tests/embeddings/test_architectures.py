"""Every encoder that docs/embeddings.md names: what an input comes to does not depend on what it is computed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from workers.model.encoder import Encoder
from workers.model.pooling import Pooling

SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    vocab_size=200,
    pad_token_id=0,
)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
OTHERS: dict[str, dict[str, Any]] = {
    "albert": dict(embedding_size=32),
    "distilbert": dict(dim=64, hidden_dim=96, n_layers=2, n_heads=4),
    "electra": dict(embedding_size=32),
    "eurobert": dict(num_key_value_heads=4, **SPECIAL),
    "flaubert": dict(emb_dim=64, n_layers=2, n_heads=4),
    "gemma3_text": dict(num_key_value_heads=2, head_dim=16, use_bidirectional_attention=True),
    "luke": dict(entity_vocab_size=10, entity_emb_size=16),
    "mobilebert": dict(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32),
    "modernbert": SPECIAL,
    "rembert": dict(input_embedding_size=32, output_embedding_size=64),
    "squeezebert": dict(embedding_size=64),
    "xlm": dict(emb_dim=64, n_layers=2, n_heads=4),
    "xmod": dict(languages=["en_XX"], default_language="en_XX"),
}
PLAIN = [
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "convbert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "ernie",
    "fnet",
    "gte",
    "jina_embeddings_v3",
    "layoutlm",
    "longformer",
    "megatron-bert",
    "mpnet",
    "mra",
    "nomic_bert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "splinter",
    "xlm-roberta",
    "xlm-roberta-xl",
    "yoso",
]


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_alone_and_together(kind: str) -> None:
    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**SIZES, **OTHERS.get(kind, {})}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0.0, 0.15)
    encoder = Encoder(model, Pooling("mean", True), torch.device("cpu"))
    inputs = [[5 + index % 100 for index in range(count)] for count in (12, 9, 20, 3, 9)]
    alone = torch.cat([encoder([one]) for one in inputs])
    torch.testing.assert_close(encoder(inputs), alone, rtol=0, atol=1e-5)
    assert alone.shape == (5, 64)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    assert bool(encoder([[7] * encoder.longest]).isfinite().all())
