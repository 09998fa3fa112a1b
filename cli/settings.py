"""Every setting, once: a flag of the commands that use it, and the variable HEADRACE_<NAME>."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.engine.config import EngineConfig
from workers.model.loaders.demo import DEMO_NAME


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/headrace, or ~/.local/share/headrace."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "headrace"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        protected_namespaces=(),
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is worth a log line")


class BrokerSettings(Settings):
    amqp_url: str = Field(
        default_factory=lambda: os.environ.get("AMQP_URL", ""),
        description="RabbitMQ, as amqp://user:password@host:port/; AMQP_URL is read too; `serve` without it uses its "
        "embedded broker",
    )


class StoreSettings(Settings):
    database_url: str = Field(
        default_factory=lambda: os.environ.get("DATABASE_URL", ""),
        description="Postgres, as postgresql+asyncpg://user:password@host:port/name, or sqlite+aiosqlite:///file; "
        "DATABASE_URL is read too; without it an SQLite file in the data directory",
    )
    data_dir: Path = Field(default_factory=default_data_dir, description="where the SQLite file is kept")

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.expanduser().resolve() / 'headrace.db'}"


class HttpSettings(Settings):
    host: str = Field("127.0.0.1", description="address to listen on; anyone who reaches it may use the service")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    request_timeout: float = Field(1800.0, gt=0, description="seconds that a request may take in all")


class WorkerSettings(Settings):
    model: str = Field("demo", description="model folder, .gguf file, hub id (org/name), or demo")
    served_model_name: str = Field("", description="name in the API; default: from the model's file or folder name")
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights, for measurements")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of weights and cache")
    max_model_len: int | None = Field(None, ge=2, description="tokens of prompt and output; default: the model's own")
    max_running: int = Field(256, ge=1, description="requests in one batch at most")
    max_batched_tokens: int = Field(8192, ge=16, description="tokens computed in one step at most")
    kv_blocks: int | None = Field(None, ge=1, description="blocks of the KV cache; default: what memory leaves")
    kv_memory_bytes: int | None = Field(None, ge=1, description="bytes for the KV cache; default: what memory leaves")
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="part of the GPU's memory to use in all")
    prefix_caching: bool = Field(True, description="reuse the cache of common prefixes")
    threads: int | None = Field(None, ge=1, description="CPU threads of the engine; default: torch's choice")
    drain_seconds: float = Field(30.0, ge=0, description="seconds that running requests get to end at shutdown")
    trust_remote_code: bool = Field(False, description="run tokenizer code that comes with the model")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        if self.served_model_name:
            return self.served_model_name
        return DEMO_NAME if self.model == "demo" else Path(self.model).name.removesuffix(".gguf")

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            model=self.model,
            load_format=self.load_format,
            device=self.device,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_running=self.max_running,
            max_batched_tokens=self.max_batched_tokens,
            kv_blocks=self.kv_blocks,
            kv_memory_bytes=self.kv_memory_bytes,
            gpu_memory_fraction=self.gpu_memory_fraction,
            prefix_caching=self.prefix_caching,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
        )


class ServeSettings(HttpSettings, WorkerSettings, BrokerSettings, StoreSettings):
    """Everything in one command: api, jobs and a worker, on the embedded broker and SQLite unless told otherwise."""


class ApiCommandSettings(HttpSettings, BrokerSettings, StoreSettings):
    """The HTTP tier alone. Needs RabbitMQ; holds no state, so run as many as you like."""

    processes: int = Field(1, ge=1, description="processes that share the port")


class WorkerCommandSettings(WorkerSettings, BrokerSettings):
    """One worker: a front that talks to RabbitMQ and an engine on one device."""


class JobsSettings(BrokerSettings, StoreSettings):
    """The dispatcher (batch lines out) and the recorder (results in)."""


class MigrateSettings(StoreSettings):
    """Bring the database's schema up to date, or take it back."""

    revision: str = Field("head", description="head, a revision, or base to drop everything")
    down: bool = Field(False, description="go down to the revision instead of up")


class TopologySettings(BrokerSettings):
    """Declare exchanges and queues on RabbitMQ; safe to repeat."""

    models: list[str] = Field(default_factory=list, description="also the request queues of these models")


class PublishSettings(BrokerSettings):
    """Publish one chat message straight to the queue and print the answer as it comes."""

    model: str = Field(description="the model's name in the API")
    message: str = Field("", description="what to say; default: read from standard input")
    max_tokens: int | None = Field(None, ge=1, description="length of the answer at most")
    temperature: float = Field(1.0, ge=0, le=2, description="0 picks the likeliest token always")
