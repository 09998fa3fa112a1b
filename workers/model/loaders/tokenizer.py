"""The tokenizer of a model folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.gguf_file import GGUFFile, open_gguf

_CONTROL, _USER_DEFINED = 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_PATTERNS = {"default": _GPT2, "gpt-2": _GPT2, "qwen2": _QWEN2, **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3)}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template. Raises ModelLoadError."""
    try:
        if path.is_file():
            return _from_gguf(open_gguf(path))
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except ModelLoadError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions, and each tokenizer's own code what it likes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelLoadError(f"{path}: the tokenizer cannot be loaded: {reason}") from error


def _from_gguf(file: GGUFFile) -> PreTrainedTokenizerBase:
    kind = file.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level_bpe(file)
    if kind == "llama":
        return AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name, local_files_only=True)
    raise ModelLoadError(f"{file.path}: tokenizer model {kind!r} is not supported; supported: gpt2, llama")


def _byte_level_bpe(file: GGUFFile) -> PreTrainedTokenizerBase:
    words = _required(file, "tokens")
    tokenizer = Tokenizer(_bpe(file, words))
    tokenizer.normalizer = normalizers.NFC() if _pre_name(file) == "qwen2" else None
    tokenizer.pre_tokenizer = _pre_tokenizer(file)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added_tokens(file, words))
    special = {name: word for key, name in _SPECIAL.items() if (word := _word(file, words, key)) is not None}
    if file.get("tokenizer.ggml.add_bos_token", _is_llama3(file)) and "bos_token" in special:
        tokenizer.post_processor = _bos_first(special["bos_token"], words.index(special["bos_token"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = file.get("tokenizer.chat_template")
    return fast


def _bpe(file: GGUFFile, words: list[str]) -> models.BPE:
    """Llama 3 takes a word that is in the vocabulary as it is, whatever its merges would make of it."""
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _required(file, "merges"))]
    return models.BPE({word: index for index, word in enumerate(words)}, merges, ignore_merges=_is_llama3(file))


def _added_tokens(file: GGUFFile, words: list[str]) -> list[AddedToken]:
    """Tokens that no merge may cut. Control tokens are special; what users defined (<think>) is text and is shown."""
    kinds = file.get("tokenizer.ggml.token_type") or [1] * len(words)
    return [
        AddedToken(word, special=kind == _CONTROL, normalized=False)
        for word, kind in zip(words, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _bos_first(word: str, index: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=[word, "$A"], pair=[word, "$A", f"{word}:1", "$B:1"], special_tokens=[(word, index)]
    )


def _required(file: GGUFFile, name: str) -> list[str]:
    value: list[str] | None = file.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise ModelLoadError(f"{file.path}: metadata tokenizer.ggml.{name} is missing")
    return value


def _word(file: GGUFFile, words: list[str], name: str) -> str | None:
    index = file.get(f"tokenizer.ggml.{name}_token_id")
    if index is not None and index >= len(words):
        raise ModelLoadError(f"{file.path}: {name} is token {index}, and the vocabulary has {len(words)}")
    return None if index is None else words[index]


def _pre_name(file: GGUFFile) -> str:
    return str(file.get("tokenizer.ggml.pre", "default"))


def _is_llama3(file: GGUFFile) -> bool:
    return _pre_name(file) in _LLAMA3_NAMES


def _pre_tokenizer(file: GGUFFile) -> Any:
    name = _pre_name(file)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in _PATTERNS:
        supported = ", ".join(["smollm", *_PATTERNS])
        raise ModelLoadError(f"{file.path}: pre-tokenizer {name!r} is not supported; supported: {supported}")
    split = pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
