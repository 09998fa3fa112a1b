"""Small random embedding models with real tokenizers, as transformers and sentence-transformers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    FNetConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
)

SENTENCES = "the quick brown fox jumps over lazy dog and then some more words about rivers mills wheels water"
WORDS = SENTENCES.split()
TEXTS = [
    "the quick brown fox",
    "water",
    "some more words about rivers and mills and wheels and water " * 5,
    "the lazy dog jumps",
]
LENGTH = 128
SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)
DECODERS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=257, bos_token_id=256, eos_token_id=256),
    "qwen3": Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, vocab_size=257, bos_token_id=256, eos_token_id=256
    ),
}
ENCODER_VOCAB = len(WORDS) + 5 + 52
ENCODERS: dict[str, Any] = {
    "bert": BertConfig(**SIZES, vocab_size=ENCODER_VOCAB, pad_token_id=0),
    "roberta": RobertaConfig(**SIZES, vocab_size=ENCODER_VOCAB, pad_token_id=0, bos_token_id=2, eos_token_id=3),
    "mpnet": MPNetConfig(**SIZES, vocab_size=ENCODER_VOCAB, pad_token_id=1),
    "distilbert": DistilBertConfig(
        dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=LENGTH, vocab_size=ENCODER_VOCAB
    ),
    "fnet": FNetConfig(**{name: size for name, size in SIZES.items() if "heads" not in name}, vocab_size=ENCODER_VOCAB),
    "modernbert": ModernBertConfig(
        **SIZES,
        vocab_size=ENCODER_VOCAB,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
}
"""Padding would change what fnet makes."""


def write_model(
    folder: Path, kind: str, *, pooling: str | None = None, normalize: bool = True, longest: int | None = None
) -> Any:
    """A model of one of the kinds above; with `pooling` (cls, mean, lasttoken) and sentence-transformers' files around
    it. Returns transformers' own model."""
    config = (DECODERS | ENCODERS)[kind]
    torch.manual_seed(11)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0.0, 0.15)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (byte_tokenizer() if kind in DECODERS else word_tokenizer()).save_pretrained(folder)
    if pooling is not None:
        write_modules(folder, pooling, normalize, longest)
    return model


def write_modules(folder: Path, pooling: str, normalize: bool, longest: int | None, dense: int = 0) -> None:
    """`dense`: so many Dense modules, from `write_dense`."""
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{n + 2}_Dense", "Dense") for n in range(dense))]
    if normalize:
        parts.append((f"{dense + 2}_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    modes = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken", "max": "max_tokens"}
    chosen = {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **chosen}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))


def write_dense(folder: Path, activation: str, inputs: int, outputs: int) -> torch.nn.Linear:
    """A Dense module; with a bias where it has a Tanh."""
    torch.manual_seed(outputs)
    layer = torch.nn.Linear(inputs, outputs, bias=activation == "Tanh")
    folder.mkdir()
    config = {"in_features": inputs, "out_features": outputs, "activation_function": f"torch.nn.modules.x.{activation}"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}, folder / "model.safetensors")
    return layer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and one at the end of every text, which pooling by the last token looks at."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece between [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(ord("a") + n) for n in range(26)]
    words = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def reference(model: Any, token_ids: list[int], pooling: str, *, normalize: bool = True) -> torch.Tensor:
    """transformers' hidden states of one input, pooled here."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
    vector = {"cls": states[0], "lasttoken": states[-1], "mean": states.mean(0)}[pooling]
    return vector / vector.norm() if normalize else vector
