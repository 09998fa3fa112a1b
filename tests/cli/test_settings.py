"""Settings come from flags, then HEADRACE_ variables, then the plain variables, then defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from cli import settings as declared
from cli.main import COMMANDS, parse
from workers.engine.config import EngineConfig


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMQP_URL", "DATABASE_URL", "HEADRACE_AMQP_URL", "HEADRACE_DATABASE_URL", "HEADRACE_PORT"):
        monkeypatch.delenv(name, raising=False)


def serve(*flags: str) -> declared.ServeSettings:
    settings = parse("serve", declared.ServeSettings, list(flags))
    assert isinstance(settings, declared.ServeSettings)
    return settings


def test_defaults_need_nothing() -> None:
    settings = serve()
    assert settings.host == "127.0.0.1"
    assert settings.model_name == "smollm2-135m-instruct"
    assert settings.amqp_url == ""
    assert settings.store_url == f"sqlite:///{declared.default_data_dir() / 'headrace.db'}"


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "9001")
    assert serve().port == 9001
    assert serve("--port", "9002").port == 9002


def test_plain_addresses_are_read_below_the_prefixed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://plain/")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///plain.db")
    assert (serve().amqp_url, serve().store_url) == ("amqp://plain/", "sqlite:///plain.db")
    monkeypatch.setenv("HEADRACE_AMQP_URL", "amqp://prefixed/")
    assert serve().amqp_url == "amqp://prefixed/"
    assert serve("--amqp-url", "amqp://flag/").amqp_url == "amqp://flag/"


def test_other_plain_variables_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "elsewhere")
    monkeypatch.setenv("MODEL", "other")
    assert (serve().host, serve().model) == ("127.0.0.1", "demo")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "smollm2-135m-instruct"),
        ("/models/Qwen3-8B-Q4_K.gguf", "Qwen3-8B-Q4_K"),
        ("/models/llama-8b/", "llama-8b"),
        ("org/name", "org/name"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
    ],
)
def test_the_served_name_follows_from_the_model(model: str, name: str) -> None:
    assert declared.served_name(model) == name
    assert serve("--model", model, "--served-model-name", "mine").model_name == "mine"


def test_the_data_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert serve().data_dir == tmp_path / "headrace"


def test_engine_settings_reach_the_engine() -> None:
    flags = ["--dtype", "float32", "--kv-blocks", "7", "--no-prefix-caching", "--threads", "2", "--max-model-len", "99"]
    assert serve(*flags).engine_config() == EngineConfig(
        model="demo", dtype="float32", kv_blocks=7, prefix_caching=False, threads=2, max_model_len=99
    )


def test_migrate_goes_up_to_head_and_down_to_base() -> None:
    up, down = (parse("migrate", declared.MigrateSettings, flags) for flags in ([], ["--down"]))
    assert isinstance(up, declared.MigrateSettings)
    assert isinstance(down, declared.MigrateSettings)
    assert (up.target, down.target) == ("head", "base")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_described(name: str) -> None:
    fields = COMMANDS[name].settings.model_fields
    assert issubclass(COMMANDS[name].settings, BaseSettings)
    assert [field for field, info in fields.items() if not info.description] == []
