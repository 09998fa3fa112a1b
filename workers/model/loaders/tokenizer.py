"""The tokenizer of a model folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
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
_PATTERNS = {"default": _GPT2, "gpt-2": _GPT2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2}


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template. Raises ModelLoadError."""
    if path.is_file():
        return _from_gguf(open_gguf(path))
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(f"{path}: the tokenizer cannot be loaded: {reason}") from error


def _from_gguf(file: GGUFFile) -> PreTrainedTokenizerBase:
    kind = file.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level_bpe(file)
    if kind == "llama":
        return AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name, local_files_only=True)
    raise ModelLoadError(f"{file.path}: tokenizer model {kind!r} is not supported; supported: gpt2, llama")


def _byte_level_bpe(file: GGUFFile) -> PreTrainedTokenizerBase:
    words: list[str] = file.get("tokenizer.ggml.tokens")
    types: list[int] = file.get("tokenizer.ggml.token_type") or [1] * len(words)
    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(file)
    tokenizer.decoder = decoders.ByteLevel()
    for word, kind in zip(words, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_special_tokens([AddedToken(word, special=kind == _CONTROL, normalized=False)])
    special = {name: _word(file, words, name) for name in ("bos", "eos", "padding", "unknown")}
    if file.get("tokenizer.ggml.add_bos_token") and special["bos"]:
        bos = (special["bos"], words.index(special["bos"]))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{names[key]: word for key, word in special.items() if word is not None}
    )
    fast.chat_template = file.get("tokenizer.chat_template")
    return fast


def _word(file: GGUFFile, words: list[str], name: str) -> str | None:
    index = file.get(f"tokenizer.ggml.{name}_token_id")
    return None if index is None else words[index]


def _pre_tokenizer(file: GGUFFile) -> Any:
    name = file.get("tokenizer.ggml.pre", "default")
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in _PATTERNS:
        supported = ", ".join(["smollm", *_PATTERNS])
        raise ModelLoadError(f"{file.path}: pre-tokenizer {name!r} is not supported; supported: {supported}")
    split = pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
