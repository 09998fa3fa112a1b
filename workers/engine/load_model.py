"""The model of an engine: the decoder where a family reads the checkpoint, else one of transformers'."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workers.engine.config import EngineConfig
from workers.model.config import DecoderConfig
from workers.model.decoder import Decoder
from workers.model.families.registry import UnsupportedModel, architectures, decoder_config
from workers.model.interface import CausalModel
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.pooling import causal_architecture
from workers.model.loaders.weights import DummyWeights, open_weights
from workers.model.pooling import Pooling

logger = logging.getLogger(__name__)


def load_model(
    config: EngineConfig,
    path: Path,
    raw: dict[str, Any],
    pooling: Pooling | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[CausalModel, int]:
    """The model, and the longest context that it serves, in tokens. Raises ModelLoadError."""
    try:
        settings = _decoder_settings(config, raw)
    except UnsupportedModel as error:
        if config.implementation == "native" or path.is_file() or pooling is not None:
            raise ModelLoadError(f"{path}: {error}") from error
        return _backend(config, path, device, dtype, _refusal(raw, error))
    longest = settings.max_position
    if pooling is not None:
        settings = replace(settings, headless=True)
        longest = min(longest, pooling.max_length or longest)
    limit = min(config.max_model_len or longest, settings.longest_position)
    return _decoder(config, settings, path, limit, device, dtype), limit


def _decoder_settings(config: EngineConfig, raw: dict[str, Any]) -> DecoderConfig:
    if config.implementation == "transformers":
        raise UnsupportedModel("implementation transformers was asked for")
    return read_decoder_config(raw)


def reads_causally(config: EngineConfig, raw: dict[str, Any]) -> bool:
    """Whether an embedding model is one for the decoder; transformers' own modules serve all others."""
    if config.implementation == "transformers" or causal_architecture(raw) is None:
        return False
    try:
        read_decoder_config(raw)
    except UnsupportedModel as error:
        logger.info("embeddings by transformers' own code: %s", error)
        return config.implementation == "native"
    return True


def read_decoder_config(raw: dict[str, Any]) -> DecoderConfig:
    """A base model is read as what it is the base of. Raises UnsupportedModel."""
    architecture = causal_architecture(raw)
    return decoder_config(raw if architecture is None else {**raw, "architectures": [architecture]})


def _decoder(
    config: EngineConfig, settings: DecoderConfig, path: Path, limit: int, device: torch.device, dtype: torch.dtype
) -> Decoder:
    source = DummyWeights(config.seed) if config.load_format == "dummy" else open_weights(path)
    settings = replace(settings, names=settings.names.fitted(source.has))
    return Decoder(settings, lambda name, shape, kind=dtype: source.get(name, shape, kind, device), limit)


def _refusal(raw: dict[str, Any], error: UnsupportedModel) -> str:
    """Why the family of this architecture does not serve it; empty where it has none."""
    return str(error) if architectures().keys() & set(raw.get("architectures") or []) else ""


def _backend(
    config: EngineConfig, path: Path, device: torch.device, dtype: torch.dtype, refusal: str
) -> tuple[CausalModel, int]:
    from workers.model.backend.load import load_backend  # seconds of imports, for those who need them

    logger.warning(
        "%s: %s; it runs by transformers' own code", path.name, refusal or "no family reads its architecture"
    )
    try:
        return load_backend(
            path,
            dtype,
            device,
            max_model_len=config.max_model_len,
            dummy=config.load_format == "dummy",
            trust_remote_code=config.trust_remote_code,
        )
    except ModelLoadError as failed:
        raise ModelLoadError(f"{failed} (and its family: {refusal})" if refusal else str(failed)) from failed
