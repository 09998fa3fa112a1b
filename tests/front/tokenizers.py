"""Small tokenizers made in memory: byte-level BPE, SentencePiece-like with byte fallback, WordPiece."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ suffix }}"
)
CORPUS = ["hello world, the quick brown fox jumps over the lazy dog. naïve café 😀 STOP the end"] * 4


def byte_level(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 byte tokens, some merges, `<|end|>` (special) and `<|tag|>` (added, not special)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<|tag|>", special=False), AddedToken("añ b", special=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = template
    return fast


def sentencepiece(*, strip: bool = True) -> PreTrainedTokenizerFast:
    """Pieces with U+2581 for a space, byte tokens, `<s>`; decodes like Llama 2's (`strip`) or Gemma's."""
    pieces = ["<s>", "\u2581", "a", "b", "\u2581a", "\u2581hello", "lo", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def wordpiece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "hello", "world", "##ly", "good"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
