"""What a job leaves unset is as the model's own generation config says, whichever door and class it came by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.errors import StartError
from cli.settings import WorkerCommandSettings
from cli.worker import load_text
from schemas.messages import SamplingParams
from tests.front import tokenizers
from tests.front.harness import Bench, ids
from workers.engine.sampler import Shape
from workers.front.defaults import SamplingDefaults
from workers.protocol import AddRequest

SUGGESTED: dict[str, Any] = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "max_tokens": 7}


async def added(bench: Bench, defaults: dict[str, Any], job_class: str = "interactive", **sampling: Any) -> AddRequest:
    """What the engine gets of a job with this sampling."""
    engine, _ = await bench.worker(sampling_defaults=SamplingDefaults.of(defaults))
    sampling = {"max_tokens": None, **sampling}
    await bench.submit(bench.job(job_class=job_class, sampling=sampling), job_class=job_class)
    await engine.until_running(1)
    return engine.added[0]


@pytest.mark.parametrize("job_class", ["interactive", "batch"])
async def test_the_models_values_count_where_a_job_has_none(bench: Bench, job_class: str) -> None:
    request = await added(bench, SUGGESTED, job_class)
    assert Shape.of(request.sampling) == Shape(top_k=20, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert request.sampling.max_tokens == 7


async def test_what_a_job_says_counts_be_it_what_would_do_nothing(bench: Bench) -> None:
    said = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_tokens": 30}
    request = await added(bench, SUGGESTED, **said)
    assert Shape.of(request.sampling) == Shape()
    assert request.sampling.max_tokens == 30


async def test_without_any_they_are_openais(bench: Bench) -> None:
    request = await added(bench, {})
    assert Shape.of(request.sampling) == Shape() == Shape.of(SamplingParams())
    assert request.sampling.max_tokens == 200 - len(ids("hello world"))


@pytest.mark.parametrize(
    ("suggested", "least", "length"), [(5, 0, 5), (5, 9, 9), (5000, 0, 200 - len(ids("hello world")))]
)
async def test_a_suggested_length_gives_way(bench: Bench, suggested: int, least: int, length: int) -> None:
    request = await added(bench, {"max_tokens": suggested}, min_tokens=least)
    assert request.sampling.max_tokens == length


async def test_the_same_job_again_is_the_same(bench: Bench) -> None:
    engine, _ = await bench.worker(sampling_defaults=SamplingDefaults.of(SUGGESTED))
    await bench.submit(bench.job())
    await engine.until_running(1)
    await bench.submit(bench.job())
    await bench.settle()
    assert (len(engine.added), bench.dead.messages) == (1, [])


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="temperature"):
        SamplingDefaults.of({"temperature": 7})


def folder(path: Path, generation: str) -> str:
    tokenizers.byte_level().save_pretrained(path)
    (path / "config.json").write_text('{"eos_token_id": 0, "model_type": "llama"}')
    (path / "generation_config.json").write_text(generation)
    return str(path)


def test_they_are_read_from_the_models_folder_unless_told_otherwise(tmp_path: Path) -> None:
    model = folder(tmp_path, '{"temperature": 0.6, "max_new_tokens": 9, "do_sample": true}')
    read = load_text(WorkerCommandSettings(model=model), Path(model))
    assert read.sampling_defaults.values == {"temperature": 0.6, "max_tokens": 9}
    assert (
        load_text(WorkerCommandSettings(model=model, generation_config="none"), Path(model)).sampling_defaults.values
        == {}
    )


def test_a_broken_generation_config_ends_the_start_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"generation_config\.json: .*temperature"):
        load_text(WorkerCommandSettings(model=folder(tmp_path, '{"temperature": -1}')), tmp_path)


def test_a_template_from_a_file_takes_the_place_of_the_models(tmp_path: Path) -> None:
    model, file = folder(tmp_path, "{}"), tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    assert load_text(
        WorkerCommandSettings(model=model, chat_template=str(file)), Path(model)
    ).processor.has_chat_template
    for text, reason in (
        ("{% if %}", "mine.jinja does not work"),
        ("{{ raise_exception('no') }}", "does not work: no"),
    ):
        file.write_text(text)
        with pytest.raises(StartError, match=reason):
            load_text(WorkerCommandSettings(model=model, chat_template=str(file)), Path(model))
    with pytest.raises(StartError, match="cannot be read"):
        load_text(WorkerCommandSettings(model=model, chat_template=str(tmp_path / "none.jinja")), Path(model))
