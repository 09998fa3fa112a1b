"""What a model that cannot be loaded raises."""

from __future__ import annotations


class ModelLoadError(Exception):
    """The model cannot be loaded. The message is one line that names the file, and the tensor where there is one."""
