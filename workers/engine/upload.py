"""Host to device without waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A copy on the device through pinned memory: one from pageable memory would wait for all that is queued there, and
    leave the device idle while the next step is launched."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
