"""Tokenizers built from GGUF metadata, against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from tests.loaders.files import write_file
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.tokenizer import load_tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog, and don't they'll we've", "1234 567 89 12 in 2024", "東京 café"]
TEXTS = [
    "the quick 1234567 foxes",
    "DON'T they'll\r\n\r\n  we've   ",
    "cafe\u0301 and café",
    "東京 🙂‍↔️ x\ty",
    " .5 + 3.14e10!!!\n",
]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
EXTRA = [("<|begin|>", CONTROL), ("<|end|>", CONTROL), ("<think>", USER_DEFINED), ("quickfox", NORMAL)]


def trained() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [" ".join(merge) for merge in merges]


def write_bpe(path: Path, pre: str, **changes: Any) -> Path:
    """A file with that vocabulary and EXTRA after it; `changes` replace metadata, None leaves it out."""
    vocab, merges = trained()
    words = sorted(vocab, key=lambda word: vocab[word])
    fields: dict[str, Any] = dict(
        model="gpt2",
        pre=pre,
        tokens=[*words, *(word for word, _ in EXTRA)],
        token_type=[NORMAL] * len(words) + [kind for _, kind in EXTRA],
        merges=merges,
        bos_token_id=len(words),
        eos_token_id=len(words) + 1,
        chat_template="{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}",
    )

    def fill(writer: gguf.GGUFWriter) -> None:
        for key, value in {**fields, **changes}.items():
            name = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
            add = {list: writer.add_array, str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
            if value is not None:
                add[type(value)](name, value)

    return write_file(path, fill)


def test_qwen2_is_transformers_qwen2(tmp_path: Path) -> None:
    ours = load_tokenizer(write_bpe(tmp_path / "a.gguf", "qwen2"))
    vocab, merges = trained()
    theirs = Qwen2Tokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "gpt-2", "default"])
def test_text_comes_back_as_it_was(pre: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_bpe(tmp_path / "a.gguf", pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "3", "4", "5"]),
        ("qwen2", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", ["123", "45"]),
        ("gpt-2", ["12345"]),
    ],
)
def test_digits_are_grouped_as_each_family_does(pre: str, pieces: list[str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_bpe(tmp_path / "a.gguf", pre))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")
    assert [piece for piece, _ in split] == pieces


def test_only_llama3_takes_a_known_word_whole(tmp_path: Path) -> None:
    """No merge leads to quickfox."""
    assert load_tokenizer(write_bpe(tmp_path / "a.gguf", "llama-bpe")).tokenize("quickfox") == ["quickfox"]
    assert len(load_tokenizer(write_bpe(tmp_path / "b.gguf", "qwen2")).tokenize("quickfox")) > 1


@pytest.mark.parametrize(
    ("pre", "add_bos", "first"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("gpt-2", None, False), ("gpt-2", True, True)],
)
def test_bos_is_added_where_the_file_or_the_family_asks(
    pre: str, add_bos: bool | None, first: bool, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write_bpe(tmp_path / "a.gguf", pre, add_bos_token=add_bos))
    assert (tokenizer("fox")["input_ids"][0] == tokenizer.bos_token_id) == first
    assert tokenizer.encode("fox", add_special_tokens=False)[0] != tokenizer.bos_token_id
    bos = [tokenizer.bos_token] if first else []
    pair = tokenizer.convert_ids_to_tokens(tokenizer("x", "y")["input_ids"])
    assert pair == [*bos, "x", *bos, "y"]


def test_control_tokens_are_hidden_and_user_defined_ones_shown(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_bpe(tmp_path / "a.gguf", "qwen2"))
    ids = tokenizer.encode("<think>fox<|end|>", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<think>", "<|end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>fox"
    assert tokenizer.decode(ids) == "<think>fox<|end|>"
    assert tokenizer.eos_token == "<|end|>"


def test_the_chat_template_is_the_file_s(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_bpe(tmp_path / "a.gguf", "qwen2"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "fox"}], tokenize=False) == "user:fox"


def test_sentencepiece_vocabularies(tmp_path: Path) -> None:
    pieces = [*"▁helowrd", "he", "ll", "hell", "hello", "▁hello", "▁w", "or", "▁wor", "ld", "▁world"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(words)
        writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)

    tokenizer = load_tokenizer(write_file(tmp_path / "a.gguf", fill))
    ids = tokenizer("hello world é")["input_ids"]
    assert [words[index] for index in ids] == ["<s>", "▁hello", "▁world", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello world é"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(model="t5"), "tokenizer model 't5' is not supported"),
        (dict(pre="viking"), "pre-tokenizer 'viking' is not supported"),
        (dict(tokens=None), r"metadata tokenizer\.ggml\.tokens is missing"),
        (dict(merges=None), r"metadata tokenizer\.ggml\.merges is missing"),
        (dict(merges=["zq zq"]), "cannot be loaded: .*zq"),
        (dict(token_type=[NORMAL]), "cannot be loaded"),
        (dict(eos_token_id=100000), "eos is token 100000"),
    ],
)
def test_metadata_that_makes_no_tokenizer(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = write_bpe(tmp_path / "a.gguf", **{"pre": "qwen2", **changes})
    with pytest.raises(ModelLoadError, match=rf"a\.gguf: .*{word}"):
        load_tokenizer(path)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'])
def test_folders_without_a_readable_tokenizer(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"the tokenizer cannot be loaded: .+"):
        load_tokenizer(tmp_path)
