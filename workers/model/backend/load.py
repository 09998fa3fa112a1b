"""From a model folder to a model of transformers that is served."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar

from workers.model.backend.attention import NAME, attend
from workers.model.backend.check import check
from workers.model.backend.model import TransformersModel, longest_context
from workers.model.backend.probe import NO_INTERFACE, PROBE, CannotServe, probe_mask
from workers.model.backend.tune import settle_rope, tune
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.weights import SafetensorsWeights

logger = logging.getLogger(__name__)


def load_backend(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_model_len: int | None = None,
    dummy: bool = False,
    trust_remote_code: bool = False,
) -> tuple[TransformersModel, int]:
    """Load by transformers what no family reads: the model, and the longest context that it serves. `trust_remote_code`: run
    model code that comes with the model. Raises ModelLoadError."""
    _register()
    disable_progress_bar()
    config = read_hf_config(path, trust_remote_code)
    model = (
        _random(config, dtype, device, trust_remote_code) if dummy else _load(path, config, dtype, trust_remote_code)
    )
    model = model.eval().to(device)
    limit = min(max_model_len or longest_context(config), longest_context(config))
    settle_rope(model, limit)
    tune(model)
    try:
        served = TransformersModel(model)
        check(served)
    except CannotServe as error:
        line = " ".join(str(error).split())
        raise ModelLoadError(f"{path}: {_name(config)} cannot be served by the transformers backend: {line}") from error
    return served, limit


def outline(path: Path, trust_remote_code: bool) -> TransformersModel:
    """The model without weights, for its sizes alone. Raises ModelLoadError, CannotServe, CodeFails."""
    _register()
    return TransformersModel(skeleton(path, trust_remote_code))


def skeleton(path: Path, trust_remote_code: bool, *, base: bool = False) -> Any:
    """The model on the meta device; `base`: without a head. Raises ModelLoadError."""
    _register()
    config, meta = read_hf_config(path, trust_remote_code), torch.device("meta")
    try:
        if base:
            with meta:
                return AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        return _random(config, torch.bfloat16, meta, trust_remote_code).eval()
    except Exception as error:  # as below
        raise ModelLoadError(f"{path}: {_reason(error, trust_remote_code)}") from error


def read_hf_config(path: Path, trust_remote_code: bool) -> Any:
    """Raises ModelLoadError."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers, and the code of a model, raise what they like
        raise ModelLoadError(f"{path}: {_reason(error, trust_remote_code)}") from error
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if config.is_encoder_decoder and causal not in (config.architectures or []):
        raise ModelLoadError(f"{path}: {_name(config)} is an encoder and a decoder, which is not supported")
    if hasattr(config, "is_decoder"):
        config.is_decoder = True  # BERT and its like look both ways without
    return config


def _class(config: Any) -> Any:
    """The one that the checkpoint names, where it is transformers'."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()}
    named = [name for name in config.architectures or [] if name in known]
    return getattr(transformers, named[0]) if named and not hasattr(config, "auto_map") else AutoModelForCausalLM


def _load(path: Path, config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    if getattr(config, "quantization_config", None) is not None:
        raise ModelLoadError(f"{path}: quantized checkpoints are not supported")
    SafetensorsWeights(path).check()
    try:
        model, loaded = _class(config).from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=NAME, use_safetensors=True, local_files_only=True,
            trust_remote_code=trust_remote_code, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # as above
        raise ModelLoadError(f"{path}: {_reason(error, trust_remote_code)}") from error
    for name, stored, wanted in sorted(loaded["mismatched_keys"]):
        raise ModelLoadError(f"{path}: tensor {name} has shape {list(stored)}, the config asks for {list(wanted)}")
    if missing := sorted(loaded["missing_keys"]):
        raise ModelLoadError(f"{path}: tensor {missing[0]} is missing ({len(missing)} are)")
    return model


def _random(config: Any, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
    kind = _class(config)
    with device:
        if kind is not AutoModelForCausalLM:
            return kind._from_config(config, dtype=dtype, attn_implementation=NAME)
        return kind.from_config(config, dtype=dtype, attn_implementation=NAME, trust_remote_code=trust_remote_code)


def _register() -> None:
    AttentionInterface.register(NAME, attend)
    AttentionInterface.register(PROBE, attend)
    AttentionMaskInterface.register(PROBE, probe_mask)


def _name(config: Any) -> str:
    return ", ".join(config.architectures or []) or type(config).__name__


def _reason(error: Exception, trust_remote_code: bool) -> str:
    if isinstance(error, KeyError) and error.args == (NAME,):
        return NO_INTERFACE
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text and not trust_remote_code:
        return "it comes with model code of its own; --trust-remote-code runs it, if you trust who wrote it"
    return text
