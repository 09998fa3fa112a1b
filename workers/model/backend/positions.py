"""How a model is told the positions of its tokens."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from workers.model.backend.probe import CannotServe


class Positions:
    """As an argument of the model, or, where it has none, by way of its table of positions."""

    def __init__(self, model: nn.Module) -> None:
        self._offset = _offset(model)
        self._current: Tensor | None = None
        self.passes = "position_ids" in inspect.signature(model.forward).parameters
        if not self.passes:
            tables = [module for module in model.modules() if _is_table(module)]
            if not tables:
                raise CannotServe("it takes no position_ids")
            for table in tables:
                table.register_forward_pre_hook(self._replace, with_kwargs=True)

    def arguments(self, positions: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward for tokens at `positions` [1, tokens]."""
        self._current = positions + self._offset if self._offset else positions
        return {"position_ids": self._current} if self.passes else {}

    def _replace(self, table: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._current is None:
            return None
        given = kwargs.get("position_ids")
        positions = self._current if given is None else self._current.view(given.shape)
        return args[:1], {**kwargs, "position_ids": positions}

    def release(self) -> None:
        """Let the model count positions itself, until the next `arguments`."""
        self._current = None


def _is_table(module: nn.Module) -> bool:
    named = "Position" in type(module).__name__
    return named and "position_ids" in inspect.signature(module.forward).parameters


def _offset(model: nn.Module) -> int:
    """RoBERTa and those after it count from behind their padding token's number, where they are given no positions."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if padding is not None and hasattr(module, "create_position_ids_from_input_ids"):
            return int(padding) + 1
    return 0
