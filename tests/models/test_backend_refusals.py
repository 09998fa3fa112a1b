"""What the backend does not serve, and checkpoints that are damaged: one line that says what, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.families import Row, reference
from tests.models.test_families import served
from workers.llm import LLM
from workers.model.backend.load import load_backend
from workers.model.backend.model import TransformersModel
from workers.model.decoder import Decoder
from workers.model.loaders.errors import ModelLoadError

BITNET = Row("bitnet", "bitnet")


def load(folder: Path, **settings: Any) -> TransformersModel:
    return load_backend(folder, torch.float32, torch.device("cpu"), **settings)[0]


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(("row", "reason"), [
    (Row("mamba", "mamba", dict(state_size=4)), "it keeps a state from token to token"),
    (Row("llama4", "llama4_text", dict(num_local_experts=2)), "neither causal nor a sliding window"),
    (Row("cpmant", "cpmant"), "it takes no position_ids"),
    (Row("xglm", "xglm", dict(num_layers=2, attention_heads=4, ffn_dim=96)), "does not go through transformers' attention"),
])  # fmt: skip
def test_what_is_not_served(row: Row, reason: str, tmp_path: Path) -> None:
    reference(row).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=reason) as raised:
        served(tmp_path, row)
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(raised.value)


def test_wrong_answers_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe does not see, the comparison at load does."""
    model = reference(BITNET)
    model.save_pretrained(tmp_path)
    own = type(model.model.layers[0].self_attn).forward

    def forward(self: Any, hidden_states: Tensor, **given: Any) -> Any:
        """A state from token to token, such as a convolution has."""
        return own(self, hidden_states=hidden_states + hidden_states.cumsum(1), **given)

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", forward)
    with pytest.raises(ModelLoadError, match="its logits are not those of transformers"):
        load(tmp_path)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    reference(BITNET).save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    whole = load_file(path)
    edit(tmp_path, lambda tensors: {**tensors, name: tensors[name][:-1].clone()})
    with pytest.raises(ModelLoadError, match=rf"tensor {name} has shape \[63, 96\], the config asks for \[64, 96\]"):
        load(tmp_path)
    edit(tmp_path, lambda _: {key: value for key, value in whole.items() if key != name})
    with pytest.raises(ModelLoadError, match=rf"tensor {name} is missing"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be opened"):
        load(tmp_path)


def test_quantized_and_unknown_models(tmp_path: Path) -> None:
    reference(BITNET).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(ModelLoadError, match="quantized checkpoints are not supported"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "nobodys", "architectures": ["NobodysForCausalLM"]})
    )
    with pytest.raises(ModelLoadError, match="nobodys"):
        served(tmp_path, BITNET)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    reference(Row("llama", "llama")).save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    raw |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "own.py").write_text(CODE)
    with pytest.raises(ModelLoadError, match="--trust-remote-code"):
        load(folder)
    assert type(load(folder, trust_remote_code=True).model).__name__ == "OwnForCausalLM"


def test_whose_code_it_is(tmp_path: Path) -> None:
    row = Row("llama", "llama")
    reference(row).save_pretrained(tmp_path)
    assert isinstance(_model(served(tmp_path, row)), Decoder)
    assert isinstance(_model(served(tmp_path, row, implementation="transformers")), TransformersModel)
    reference(BITNET).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="BitNetForCausalLM is not supported"):
        served(tmp_path, BITNET, implementation="native")


def test_random_weights(tmp_path: Path) -> None:
    reference(BITNET).config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": ["BitNetForCausalLM"]}))
    assert isinstance(_model(served(tmp_path, BITNET, load_format="dummy")), TransformersModel)


def _model(llm: LLM) -> Any:
    return llm.engine.runner.model
