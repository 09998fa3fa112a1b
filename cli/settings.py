"""Every setting, once: a flag of the commands that use it, and the variable HEADRACE_<NAME>.

A flag wins over a variable, a variable over the default. AMQP_URL and DATABASE_URL are read too, below their
HEADRACE_ names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from workers.engine.config import EngineConfig, Implementation, Task
from workers.front.tools.registry import ReasoningParserName, ToolParserName
from workers.model.loaders.demo import DEMO_NAME

PLAIN_VARIABLES = {"amqp_url": "AMQP_URL", "database_url": "DATABASE_URL"}


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/headrace, or ~/.local/share/headrace."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "headrace"


def served_name(model: str) -> str:
    """What clients call a model: a hub id as it is, else the name of its file or folder; idempotent."""
    if model == "demo":
        return DEMO_NAME
    path = Path(model).expanduser()
    if model.endswith(".gguf") or path.is_absolute() or path.exists():
        return path.resolve().name.removesuffix(".gguf")
    return model


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_show_env_vars=True,
        cli_exit_on_error=False,
        protected_namespaces=(),
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is worth a log line")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (in front of these), HEADRACE_ variables, then the plain ones that deployments commonly set."""
        plain = {
            field: os.environ[name]
            for field, name in PLAIN_VARIABLES.items()
            if field in settings_cls.model_fields and name in os.environ
        }
        return init_settings, env_settings, InitSettingsSource(settings_cls, plain)


class BrokerSettings(Settings):
    amqp_url: str = Field(
        "", description="RabbitMQ, as amqp://user:password@host:port/ (AMQP_URL is read too); only `serve` does without"
    )


class StoreSettings(Settings):
    database_url: str = Field(
        "",
        description="postgresql://user:password@host:port/name or sqlite:///path (DATABASE_URL is read too); "
        "without it an SQLite file in the data directory",
    )
    data_dir: Path = Field(default_factory=default_data_dir, description="where the SQLite file is kept")

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.expanduser().resolve() / 'headrace.db'}"


class HttpSettings(Settings):
    host: str = Field("127.0.0.1", description="address to listen on; any but loopback needs API keys")
    keyless: Literal["loopback", "anywhere"] = Field(
        "loopback", description="where anybody may use the service as long as no API key has been created"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    request_timeout: float = Field(1800.0, gt=0, description="seconds that a request may take in all")
    max_wait: float = Field(30.0, gt=0, description="estimated seconds in the queue beyond which a request is refused")


class DrainSettings(Settings):
    drain_seconds: float = Field(30.0, ge=0, description="seconds that requests under way get to end at shutdown")


class WorkerSettings(Settings):
    model: str = Field("demo", description="model folder, .gguf file, hub id (org/name), or demo")
    served_model_name: str = Field("", description="name in the API; empty: that of the model's file or folder")
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights, for measurements")
    implementation: Implementation = Field(
        "auto", description="native: this project's model code; transformers: theirs; auto: native where there is one"
    )
    task: Task = Field("auto", description="generate (text) or embed; auto: by the model's files (docs/embeddings.md)")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of weights and cache")
    max_model_len: int | None = Field(None, ge=2, description="tokens of prompt and output; unset: the model's own")
    max_running: int = Field(256, ge=1, description="requests in one batch at most")
    max_batched_tokens: int = Field(8192, ge=16, description="tokens computed in one step at most")
    batch_step_tokens: int | None = Field(
        None, ge=1, description="tokens of a step that may be batch work while others come too; unset: learnt"
    )
    kv_blocks: int | None = Field(None, ge=1, description="blocks of the KV cache; unset: what memory leaves")
    kv_memory_bytes: int | None = Field(None, ge=1, description="bytes for the KV cache; unset: what memory leaves")
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="part of the GPU's memory to use in all")
    prefix_caching: bool = Field(True, description="reuse the cache of common prefixes")
    threads: int | None = Field(None, ge=1, description="CPU threads of the engine; unset: torch's choice")
    tool_parser: ToolParserName = Field(
        "auto", description="reads tool calls; auto: by the chat template (docs/tools.md)"
    )
    reasoning_parser: ReasoningParserName = Field(
        "auto", description="splits off reasoning; auto: by the chat template"
    )
    chat_template: str = Field("", description="file with a Jinja template in place of the model's own")
    trust_request_chat_template: bool = Field(
        False, description="let requests bring chat templates; such code can use up this process's time and memory"
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="auto: what a request leaves unset is as the model's generation_config.json says; none: OpenAI's",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or served_name(self.model)

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            model=self.model,
            load_format=self.load_format,
            implementation=self.implementation,
            task=self.task,
            device=self.device,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_running=self.max_running,
            max_batched_tokens=self.max_batched_tokens,
            batch_step_tokens=self.batch_step_tokens,
            kv_blocks=self.kv_blocks,
            kv_memory_bytes=self.kv_memory_bytes,
            gpu_memory_fraction=self.gpu_memory_fraction,
            prefix_caching=self.prefix_caching,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
        )


class ServeSettings(
    HttpSettings, WorkerSettings, DrainSettings, BrokerSettings, StoreSettings, cli_prog_name="headrace serve"
):
    """Everything in one command: api, jobs and a worker, on the embedded broker and SQLite unless told otherwise."""


class ApiCommandSettings(HttpSettings, DrainSettings, BrokerSettings, StoreSettings, cli_prog_name="headrace api"):
    """The HTTP tier alone. Needs RabbitMQ and a migrated database; holds no state, so run as many as you like."""

    processes: int = Field(1, ge=1, description="processes that share the port")


class WorkerCommandSettings(WorkerSettings, DrainSettings, BrokerSettings, cli_prog_name="headrace worker"):
    """One worker: a front that talks to RabbitMQ, and an engine on one device. Needs no database."""


class JobsSettings(BrokerSettings, StoreSettings, cli_prog_name="headrace jobs"):
    """The dispatcher (batch lines out) and the recorder (results in). Needs RabbitMQ and a migrated database."""


class MigrateSettings(StoreSettings, cli_prog_name="headrace migrate"):
    """Bring the database's schema up to date, or take it back."""

    revision: str = Field("", description="where to go; empty: head, or with --down base, which drops everything")
    down: bool = Field(False, description="go down to the revision instead of up")

    @property
    def target(self) -> str:
        return self.revision or ("base" if self.down else "head")


class TopologySettings(BrokerSettings, cli_prog_name="headrace topology"):
    """Declare exchanges and queues on RabbitMQ; safe to repeat."""

    models: list[str] = Field(default_factory=list, description="names of models whose request queues to declare too")


class PublishSettings(BrokerSettings, cli_prog_name="headrace publish"):
    """Publish straight to the queue and print what comes back. Give one of --message, --messages, --prompt, --file;
    with none of them the message is read from standard input."""

    model: str = Field("demo", description="the model's name in the API, or what its worker has as --model")
    message: str = Field("", description="what the user says")
    messages: str = Field("", description='a whole conversation, as JSON: [{"role": ..., "content": ...}, ...]')
    prompt: str = Field("", description="text to go on from, without a chat template")
    file: str = Field("", description="jobs, one JSON object a line (docs/queue.md); - is standard input")
    max_tokens: int | None = Field(None, ge=1, description="length of the answer at most")
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 always takes the likeliest token; unset: the model's own"
    )
    seed: int | None = Field(None, description="makes the answer reproducible")
    concurrency: int = Field(64, ge=1, description="jobs of a file under way at once")


class KeysSettings(StoreSettings, cli_prog_name="headrace keys"):
    """API keys. A key is shown once, when it is created. Once there is one, requests need a key; files, batches and
    usage belong to the key they came with. Changes reach running services within seconds."""

    action: CliPositionalArg[Literal["create", "list", "revoke"]] = Field(description="what to do")
    ids: CliPositionalArg[list[str]] = Field(
        default_factory=list, description="keys to revoke, by their ids in the list"
    )
    name: str = Field("", max_length=200, description="what to call a new key, for those who read the list")
    json_lines: bool = Field(False, description="list as one JSON object a line")


class ModelsSettings(Settings, cli_prog_name="headrace models"):
    """Which models are served, and by whose code: families of this project's, transformers' own code, or not, and why."""

    format: Literal["text", "markdown", "json-lines"] = Field("text", description="how to print them")


class InspectSettings(Settings, cli_prog_name="headrace inspect"):
    """What a model is and needs, without loading its weights: whose code runs it, parameters, memory, context, tokenizer."""

    model: CliPositionalArg[str] = Field(description="model folder, .gguf file, hub id (org/name), or demo")
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="part of the GPU's memory to use in all")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class DeadSettings(BrokerSettings, cli_prog_name="headrace dead"):
    """Dead letters: messages that could not be dealt with, each with the reason and its attempts. They are held back
    from others while this command runs, and go back in their order."""

    action: CliPositionalArg[Literal["list", "show", "replay", "drop"]] = Field(description="what to do")
    ids: CliPositionalArg[list[str]] = Field(default_factory=list, description="letters, by their ids in the list")
    all_letters: bool = Field(False, description="show, replay or drop all of them")
    max_letters: int = Field(10_000, ge=1, le=65_535, description="letters looked at, oldest first")
    json_lines: bool = Field(False, description="list as one JSON object a line")
