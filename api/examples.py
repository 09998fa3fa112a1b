"""An example body of each request that has one, by method and path: tests send them all."""

from __future__ import annotations

from typing import Any

MODEL = "smollm2-135m-instruct"

EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/chat/completions"): {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    },
    ("post", "/v1/completions"): {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16, "seed": 7},
    ("post", "/v1/embeddings"): {"model": "all-minilm-l6-v2", "input": ["The food was good.", "We ate well."]},
    ("post", "/v1/responses"): {"model": MODEL, "input": "What is the capital of France?", "max_output_tokens": 16},
    ("post", "/v1/tokenize"): {"model": MODEL, "prompt": "Once upon a time", "return_token_strs": True},
    ("post", "/v1/detokenize"): {"model": MODEL, "tokens": [6403, 1980, 253, 655]},
    ("post", "/v1/batches"): {
        "input_file_id": "file-0123456789abcdef",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"job": "nightly"},
    },
}
