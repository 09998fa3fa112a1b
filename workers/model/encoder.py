"""Models whose attention looks both ways (BERT and its like), through transformers' own modules: no cache, whole inputs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine.upload import upload
from workers.model.loaders.errors import ModelLoadError
from workers.model.pooling import Pooling
from workers.model.projection import Projection

CLOSE_LENGTH = 16
"""Inputs that differ by no more tokens, or by a quarter, are padded to one length and computed together."""
MOVED = {torch.float32: 1e-3}
MOVED_ROUNDED = 0.05
"""By so much of the largest value padding may move a state, in fp32 and in types with fewer bits."""

logger = logging.getLogger(__name__)


class Encoder:
    """`model` is a transformers model that returns `last_hidden_state`."""

    def __init__(self, model: Any, pooling: Pooling, device: torch.device) -> None:
        self.pooling, self.device = pooling, device
        self._projection = Projection(pooling.dense, model.config.hidden_size, device)
        self.width = self._projection.width
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.longest = longest_input(model)
        self._model = model.to(device).eval()
        self._pad: int = getattr(model.config, "pad_token_id", None) or 0
        self._pads = self._is_unmoved_by_padding()

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[list[int]]) -> Tensor:
        """Pooled states of all inputs, fp32 [inputs, width], on the device."""
        made = torch.empty(len(inputs), self.width, device=self.device)
        for group in groups([len(tokens) for tokens in inputs], pads=self._pads):
            made[self._tensor(group)] = self._projection(self._pooled([inputs[index] for index in group]))
        return made

    def _pooled(self, inputs: list[list[int]]) -> Tensor:
        """fp32 [inputs, hidden]."""
        states, attended, lengths = self._states(inputs)
        if self.pooling.method == "cls":
            return states[:, 0]
        if self.pooling.method == "last":
            return states[torch.arange(len(inputs), device=self.device), lengths - 1]
        return (states * attended[:, :, None]).sum(1) / lengths[:, None]

    def _states(self, inputs: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """fp32 states [inputs, longest, hidden], which of them are of tokens [inputs, longest], and how many [inputs]."""
        counts = np.array([len(tokens) for tokens in inputs])
        ids = np.full((len(inputs), counts.max()), self._pad)
        mask = np.arange(counts.max()) < counts[:, None]
        ids[mask] = np.concatenate(inputs)
        lengths, attended = self._tensor(counts), self._tensor(mask)
        output = self._model(input_ids=self._tensor(ids), attention_mask=attended)
        return output.last_hidden_state.float(), attended, lengths

    @torch.inference_mode()
    def _is_unmoved_by_padding(self) -> bool:
        """Some models mix what is beside each other (by convolutions or Fourier transforms) and heed no mask there."""
        tokens = [self.vocab_size - 1 - index for index in range(min(4, self.longest // 2))]
        alone, padded = self._states([tokens])[0][0], self._states([tokens, [*tokens, *tokens]])[0][0, : len(tokens)]
        limit = MOVED.get(self._model.dtype, MOVED_ROUNDED) * float(alone.abs().max())
        unmoved = float((alone - padded).abs().max()) <= limit
        if not unmoved:
            logger.info("padding would move this model's states: only inputs of one length are computed together")
        return unmoved

    def _tensor(self, values: Any) -> Tensor:
        return upload(np.asarray(values, dtype=np.int64), self.device)


def groups(lengths: Sequence[int], *, pads: bool = True) -> list[list[int]]:
    """Indices of inputs of about the same length, or where nothing `pads` of the same, longest first."""
    made: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not made or longest - lengths[index] > (max(CLOSE_LENGTH, longest // 4) if pads else 0):
            made.append([])
            longest = lengths[index]
        made[-1].append(index)
    return made


def longest_input(model: Any) -> int:
    """Tokens that the model has positions for. RoBERTa and its like begin to count behind the padding token's id."""
    named = int(getattr(model.config, "max_position_embeddings", None) or 512)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return min(named, module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return named


def load_encoder(path: Path, dtype: torch.dtype, *, trust_remote_code: bool = False, dummy: bool = False) -> Any:
    """The transformers model of a folder; `dummy`: with random weights. Raises ModelLoadError."""
    from transformers import AutoConfig, AutoModel

    options = {"trust_remote_code": trust_remote_code, "dtype": dtype}
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        if dummy:
            return AutoModel.from_config(config, **options)
        options |= _without_pooler(AutoModel, config)
        model, report = AutoModel.from_pretrained(
            path, config=config, local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # transformers raises what it likes, and so does a model's own code
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelLoadError(f"{path}: the model cannot be loaded: {reason}") from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise ModelLoadError(f"{path}: tensor {missing[0]} is missing")
    return model


def _without_pooler(auto: Any, config: Any) -> dict[str, bool]:
    """BERT's own pooling layer is not the one that is wanted, and missing in many checkpoints."""
    kind = auto._model_mapping.get(type(config), None)
    takes = kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}
