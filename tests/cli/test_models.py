"""`headrace models` and `headrace inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, BitNetConfig, Gemma2Config, LlamaConfig, MambaConfig, MistralConfig

from cli import inspect_model, models
from cli.errors import StartError
from cli.settings import InspectSettings, ModelsSettings
from tests.cli.headrace import ROOT, run
from tests.front.tokenizers import byte_level
from tests.loaders.files import add_sizes, write_file
from workers.model.families.registry import architectures as native
from workers.model.support import architectures, summary

SIZES: dict[str, Any] = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, head_dim=16,
)  # fmt: skip
EMBEDDING, NORM, LAYER = 256 * 64, 64, 2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96


def inspected(model: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    inspect_model.run(InspectSettings(model=str(model)))
    return {line[:15].strip(): line[15:] for line in capsys.readouterr().out.splitlines()}


def save(config: Any, architecture: str, folder: Path) -> Path:
    """A folder without weights."""
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return folder


def test_a_model_of_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(LlamaConfig(**SIZES), "LlamaForCausalLM", tmp_path)
    lines = inspected(tmp_path, capsys)
    assert lines["served by"] == "family Llama"
    parameters = 2 * EMBEDDING + NORM + 3 * LAYER
    assert lines["parameters"] == f"{parameters:,}"
    assert lines["context"] == "512 tokens"
    assert lines["float32"].startswith(f"{4 * 2 * 3 * 2 * 16:,} bytes of cache a token; ")
    assert lines["tokenizer"].startswith("none: ")


@pytest.mark.parametrize(
    ("config", "architecture", "kept"),
    [
        (MistralConfig(**SIZES, sliding_window=32), "MistralForCausalLM", 0),
        (Gemma2Config(**SIZES, sliding_window=32), "Gemma2ForCausalLM", 1),
    ],
)
def test_what_a_window_keeps(
    config: Any, architecture: str, kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three layers `kept` keep everything."""
    save(config, architecture, tmp_path)
    layer = 2 * 2 * 2 * 16
    wanted = f"{3 * layer:,} bytes of cache a token, {kept * layer:,} past 32 tokens; "
    assert inspected(tmp_path, capsys)["bfloat16"].startswith(wanted)


def test_a_model_of_transformers_with_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(BitNetConfig(**SIZES), "BitNetForCausalLM", tmp_path)
    tokenizer = byte_level(template=None)
    tokenizer.save_pretrained(tmp_path)
    lines = inspected(tmp_path, capsys)
    assert lines["served by"] == "transformers' code"
    assert lines["bfloat16"].startswith(f"{2 * 2 * 3 * 2 * 16:,} bytes of cache a token; ")
    assert lines["tokenizer"] == f"{len(tokenizer):,} tokens"
    assert lines["chat template"] == "missing"


def test_a_model_that_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(MambaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2), "MambaForCausalLM", tmp_path)
    lines = inspected(tmp_path, capsys)
    assert lines["served by"].startswith("nothing: ")
    assert "keeps a state from token to token" in lines["served by"]
    assert "context" not in lines


def test_an_embedding_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(**{name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
                        num_hidden_layers=1, num_attention_heads=4)  # fmt: skip
    save(config, "BertModel", tmp_path)
    lines = inspected(tmp_path, capsys)
    assert (lines["makes"], lines["served by"]) == ("embeddings", "transformers' code")
    assert lines["parameters"] == f"{sum(p.numel() for p in BertModel(config).parameters()):,}"
    assert "context" not in lines


def test_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspected(write_file(tmp_path / "a.gguf", add_sizes), capsys)
    assert lines["parameters"] == str(4 * 32)
    assert lines["context"] == "131,072 tokens"


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"has no config\.json"):
        inspect_model.run(InspectSettings(model=str(tmp_path)))
    done = run("inspect", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    models.run(ModelsSettings(format="json-lines"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"] for row in rows if row["road"] == "native"} >= set(native())
    assert all(row["reason"] for row in rows if row["road"] == "none")
    models.run(ModelsSettings(format="text"))
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(rows)
    assert shown.err.strip() == summary(architectures())


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """`headrace models --format markdown` prints what is to be put there."""
    models.run(ModelsSettings(format="markdown"))
    assert capsys.readouterr().out in (ROOT / "docs" / "models.md").read_text()
