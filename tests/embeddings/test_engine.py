"""Vectors against transformers' hidden states, pooled by hand: in chunks, in batches, preempted, beside a prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.messages import EmbeddingParams, SamplingParams
from tests.embeddings.folders import ENCODERS, LENGTH, TEXTS, reference, write_dense, write_model, write_modules
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.engine import Engine, InvalidRequest
from workers.llm import LLM
from workers.model.encoder import groups
from workers.model.loaders.errors import ModelLoadError
from workers.protocol import AddRequest

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
TOLERANCE = 1e-3 if torch.cuda.is_available() else 1e-4
DECODER_POOLINGS = [("llama", "lasttoken"), ("llama", "mean"), ("qwen3", "lasttoken"), ("qwen3", "mean")]


def load(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), dtype="float32", **{"kv_blocks": 64, "block_size": 16, "max_running": 8, **settings})


def token_ids(llm: LLM, texts: list[str] = TEXTS) -> list[list[int]]:
    return [llm.tokenizer(text)["input_ids"][:LENGTH] for text in texts]


def assert_close(made: list[list[float]], wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close(torch.tensor(made), torch.stack(wanted), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "pooling"), DECODER_POOLINGS)
@pytest.mark.parametrize("settings", [{}, {"max_batched_tokens": 16}], ids=["whole", "chunks"])
def test_decoders(tmp_path: Path, kind: str, pooling: str, settings: dict[str, Any]) -> None:
    model = write_model(tmp_path, kind, pooling=pooling)
    llm = load(tmp_path, **settings)
    inputs = token_ids(llm)
    assert llm.ready.embedding_dimensions == 64
    wanted = [reference(model, ids, pooling) for ids in inputs]
    assert_close(llm.embed(inputs * 3), wanted * 3)
    assert isinstance(llm.engine, Engine)
    scheduler = llm.engine.scheduler
    assert (scheduler.prefix_hit_tokens > 0) == (pooling == "lasttoken")
    assert scheduler.pool.num_used == 0
    assert not scheduler.requests


@pytest.mark.parametrize(("kind", "pooling"), DECODER_POOLINGS)
def test_a_prompt_that_loses_its_blocks_half_read(tmp_path: Path, kind: str, pooling: str) -> None:
    """The first still holds its blocks, its vector being unread, when the second needs more."""
    model = write_model(tmp_path, kind, pooling=pooling)
    llm = load(tmp_path, max_batched_tokens=64, kv_blocks=10)
    assert isinstance(llm.engine, Engine)
    llm.engine.asynchronous = True
    inputs = [list(range(120)), list(range(120, 0, -1))]
    assert_close(llm.embed(inputs), [reference(model, ids, pooling) for ids in inputs])
    assert llm.engine.scheduler.preemptions == 1
    assert llm.engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_encoders(tmp_path: Path, kind: str, pooling: str) -> None:
    model = write_model(tmp_path, kind, pooling=pooling, normalize=False)
    llm = load(tmp_path, max_batched_tokens=200)
    assert isinstance(llm.engine, EncoderEngine)
    inputs = [ids[: llm.ready.max_model_len] for ids in token_ids(llm)]
    wanted = [reference(model, ids, pooling, normalize=False) for ids in inputs]
    assert_close(llm.embed(inputs * 3), wanted * 3)


def test_positions_that_begin_behind_the_padding(tmp_path: Path) -> None:
    write_model(tmp_path / "roberta", "roberta")
    write_model(tmp_path / "mpnet", "mpnet")
    lengths = [load(tmp_path / name).ready.max_model_len for name in ("roberta", "mpnet")]
    assert lengths == [LENGTH - 1, LENGTH - 2]


def test_the_files_of_a_model_set_its_length_and_its_norm(tmp_path: Path) -> None:
    write_model(tmp_path / "a", "bert", pooling="mean", normalize=False, longest=20)
    write_model(tmp_path / "b", "llama", pooling="mean", longest=30)
    bert, llama = load(tmp_path / "a"), load(tmp_path / "b")
    assert (bert.ready.max_model_len, llama.ready.max_model_len) == (20, 30)
    plain, unit = torch.tensor(bert.embed(["water"])[0]), torch.tensor(llama.embed(["water"])[0])
    assert abs(plain.norm() - 1) > 0.1
    assert abs(unit.norm() - 1) < 1e-5
    assert abs(torch.tensor(bert.embed(["water"], EmbeddingParams(normalize=True))[0]).norm() - 1) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_dimensions(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path, kind, pooling="mean")
    llm = load(tmp_path)
    whole = torch.tensor(llm.embed(["the lazy dog"])[0])
    cut = llm.embed(["the lazy dog"], EmbeddingParams(dimensions=10))[0]
    torch.testing.assert_close(torch.tensor(cut), whole[:10] / whole[:10].norm(), rtol=0, atol=1e-5)


def test_without_modules_a_base_model_makes_embeddings(tmp_path: Path) -> None:
    for kind, pooling in (("qwen3", "lasttoken"), ("bert", "mean")):
        model = write_model(tmp_path / kind, kind)
        llm = load(tmp_path / kind)
        ids = token_ids(llm, ["the quick brown fox"])
        assert_close(llm.embed(ids), [reference(model, ids[0], pooling)])


def test_a_decoder_by_transformers_own_modules(tmp_path: Path) -> None:
    model = write_model(tmp_path / "asked", "llama", pooling="lasttoken")
    llm = load(tmp_path / "asked", implementation="transformers")
    assert isinstance(llm.engine, EncoderEngine)
    inputs = token_ids(llm)
    assert_close(llm.embed(inputs), [reference(model, ids, "lasttoken") for ids in inputs])
    config = tmp_path / "asked" / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"mish"'))  # an activation that the decoder has not
    assert isinstance(load(tmp_path / "asked").engine, EncoderEngine)
    with pytest.raises(ModelLoadError, match="mish"):
        load(tmp_path / "asked", implementation="native")


def test_task_decides_where_files_do_not(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from tests.embeddings.folders import DECODERS, byte_tokenizer

    torch.manual_seed(3)
    model = LlamaForCausalLM(DECODERS["llama"]).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    text = load(tmp_path)
    assert text.ready.embedding_dimensions == 0
    with pytest.raises(InvalidRequest, match="text only"):
        text.embed(["a"])
    ids = token_ids(text, ["water"])
    assert_close(load(tmp_path, task="embed").embed(ids), [reference(model.model, ids[0], "lasttoken")])
    write_model(tmp_path / "b", "qwen3", pooling="mean")
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight"):
        load(tmp_path / "b", task="generate")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_dense_modules_behind_the_pooling(tmp_path: Path, kind: str) -> None:
    model = write_model(tmp_path, kind)
    write_modules(tmp_path, "mean", normalize=True, longest=None, dense=2)
    first = write_dense(tmp_path / "2_Dense", "Identity", 64, 96)
    second = write_dense(tmp_path / "3_Dense", "Tanh", 96, 48)
    llm = load(tmp_path)
    assert llm.ready.embedding_dimensions == 48
    inputs = token_ids(llm)
    with torch.no_grad():
        wanted = [second(first(reference(model, ids, "mean", normalize=False))).tanh() for ids in inputs]
    assert_close(llm.embed(inputs), [vector / vector.norm() for vector in wanted])
    (tmp_path / "3_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"3_Dense.model.safetensors cannot be read"):
        load(tmp_path)
    write_modules(tmp_path, "mean", normalize=False, longest=None, dense=1)
    assert load(tmp_path).ready.embedding_dimensions == 96


def test_what_cannot_be_pooled_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "max", "bert", pooling="max")
    with pytest.raises(ModelLoadError, match="max_tokens is not supported"):
        load(tmp_path / "max")
    write_model(tmp_path / "cls", "llama", pooling="cls")
    with pytest.raises(ValueError, match="first token"):
        load(tmp_path / "cls")
    write_model(tmp_path / "dense", "bert", pooling="mean")
    modules = tmp_path / "dense" / "modules.json"
    modules.write_text(modules.read_text().replace("models.Normalize", "models.CNN"))
    with pytest.raises(ModelLoadError, match="modules Transformer, Pooling, CNN are not supported"):
        load(tmp_path / "dense")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path, "bert", pooling="mean")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"encoder\.layer\.1\.output\.dense\.weight is missing"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_invalid_requests(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path, kind, pooling="mean")
    engine = load(tmp_path, kv_blocks=8).engine
    wanted = EmbeddingParams()
    cases = [
        AddRequest("a", [1], SamplingParams(max_tokens=1)),
        AddRequest("b", [], SamplingParams(max_tokens=1), embedding=wanted),
        AddRequest("c", [1] * (LENGTH + 1), SamplingParams(max_tokens=1), embedding=wanted),
        AddRequest("d", [5000], SamplingParams(max_tokens=1), embedding=wanted),
    ]
    for request in cases:
        with pytest.raises(InvalidRequest):
            engine.add(request)
    full = AddRequest("e", [1] * LENGTH, SamplingParams(max_tokens=1), embedding=wanted)
    engine.add(full)
    with pytest.raises(InvalidRequest, match="already"):
        engine.add(full)
    assert [output.id for output in engine.step()] == ["e"]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_priority_and_aborts(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path, kind, pooling="mean")
    engine = load(tmp_path, max_batched_tokens=16).engine
    for name, priority in (("late", 2), ("gone", 1), ("first", 0)):
        request = AddRequest(
            name, [7] * 16, SamplingParams(max_tokens=1), priority=priority, embedding=EmbeddingParams()
        )
        engine.add(request)
    engine.abort(["gone", "nobody"])
    assert [output.id for output in engine.step()] == ["first"]
    assert engine.stats().waiting + engine.stats().running == 1
    assert [output.id for output in engine.step()] == ["late"]
    assert not engine.has_work


def test_inputs_of_like_length_are_computed_together() -> None:
    assert groups([5, 500, 12, 480, 100]) == [[1, 3], [4], [2, 0]]
    assert groups([]) == []
    assert groups([5, 7, 5], pads=False) == [[1], [0, 2]]
