"""The sweep over transformers' architectures, on three of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bench import models
from bench.small_models import small_model


@pytest.mark.parametrize(("architecture", "model_type", "road"), [
    ("LlamaForCausalLM", "llama", "native"),
    ("BitNetForCausalLM", "bitnet", "backend"),
])  # fmt: skip
def test_what_is_served(architecture: str, model_type: str, road: str) -> None:
    assert models.attempt(architecture, model_type) == {"road": road}


def test_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = models.attempt("MambaForCausalLM", "mamba")
    assert refused["road"] == "none"
    assert refused["reason"].startswith("it keeps a state from token to token")
    monkeypatch.setattr("bench.small_models._MOST_PARAMETERS", 10)
    assert "million parameters" in models.attempt("LlamaForCausalLM", "llama")["reason"]


def test_wrong_tokens_are_found() -> None:
    model = small_model("LlamaForCausalLM", "llama")
    prompt = models.PROMPTS[1]
    own = model.generate(
        input_ids=model.dummy_inputs["input_ids"][:1, :1] * 0 + prompt[0], max_new_tokens=4, do_sample=False
    )
    output = own[0, 1:].tolist()
    assert models.same(model, prompt[:1], output)
    assert not models.same(model, prompt[:1], [*output[:-1], (output[-1] + 1) % 131])


def test_the_latest_result_counts(tmp_path: Path) -> None:
    lines = [
        {"model_type": "a", "road": "none"},
        {"model_type": "b", "road": "native"},
        {"model_type": "a", "road": "backend"},
    ]
    file = tmp_path / "results"
    assert models.read(file) == {}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {name: result["road"] for name, result in models.read(file).items()} == {"a": "backend", "b": "native"}


def test_how_a_process_ended_is_said() -> None:
    assert models._ended(-signal.SIGXCPU) == f"it takes longer than {models.CPU_SECONDS} s of a core"
    assert models._ended(-9) == "its process ends with exit code -9"
