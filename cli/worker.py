"""`headrace worker`: one worker, its front in this process and its engine in a child."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import msgspec
import uvloop

from broker.base import Broker
from cli.errors import StartError
from cli.lifecycle import Parts, StopSignal, freeze_heap, say, unless
from cli.services import amqp_broker, connected
from cli.settings import WorkerCommandSettings, WorkerSettings
from workers.engine.config import EngineConfig
from workers.front.defaults import SamplingDefaults
from workers.front.engine_client import EngineStartError, ProcessEngine
from workers.front.text import TextProcessor
from workers.front.tools.model_syntax import ModelSyntax
from workers.front.worker import EngineDiedError, Worker

STILL_LOADING_SECONDS = 10.0
MAX_DEATHS = 3
DEATH_SECONDS = 600.0

NewEngine = Callable[[EngineConfig], ProcessEngine]
"""Makes the engine's client: another than ProcessEngine's default where the service around an engine is measured."""


def run(settings: WorkerCommandSettings, new_engine: NewEngine = ProcessEngine) -> None:
    """Serve until SIGINT or SIGTERM. Raises StartError, PartEnded."""
    uvloop.run(_run(settings, new_engine))


async def _run(settings: WorkerCommandSettings, new_engine: NewEngine) -> None:
    stop = StopSignal().install()
    async with connected(amqp_broker(settings, "headrace-worker")) as broker:
        host = WorkerHost(broker, settings, new_engine)
        if await stop.unless(host.load()) is None:
            return
        freeze_heap()
        parts = Parts()
        parts.start("worker", host.run())
        say(f"ready: serving {settings.model_name} from the queue")
        try:
            await parts.wait(stop)
            say(f"stopping: running requests get up to {settings.drain_seconds:g} s")
            await parts.join("worker", host.drain(settings.drain_seconds))
        finally:
            await parts.cancel()
    say("stopped")


class WorkerHost:
    """Keeps a worker at work. An engine that dies is loaded again, up to MAX_DEATHS times in DEATH_SECONDS: its jobs wait
    in their queue meanwhile, and streams go on behind what their readers have shown."""

    def __init__(self, broker: Broker, settings: WorkerSettings, new_engine: NewEngine = ProcessEngine) -> None:
        self._broker = broker
        self._settings = settings
        self._new_engine = new_engine
        self._worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._worker: Worker | None = None
        self._draining = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    async def load(self) -> Worker:
        """Load the model. Raises StartError."""
        self._worker = await load_worker(self._broker, self._settings, self._worker_id, self._new_engine)
        return self._worker

    async def run(self) -> None:
        """Serve until drained; `load` comes first. Raises EngineDiedError where it dies too often, StartError."""
        while True:
            assert self._worker is not None, "load before run"
            try:
                return await self._worker.run()
            except EngineDiedError as error:
                self._count_death(error)
            if await unless(self._draining, self.load()) is None:
                return None

    def _count_death(self, error: EngineDiedError) -> None:
        now = time.monotonic()
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] < DEATH_SECONDS:
            raise error
        self._deaths.append(now)
        say(f"{error}: loading it again, requests wait")

    async def drain(self, grace: float) -> None:
        """Take no more jobs and let those here end within `grace` seconds."""
        self._draining.set()
        if self._worker is not None:
            await self._worker.drain(grace)


async def load_worker(broker: Broker, settings: WorkerSettings, worker_id: str, new_engine: NewEngine) -> Worker:
    """Load tokenizer and engine side by side, saying so. Raises StartError. The worker's `run` closes the engine."""
    async with _progress(settings.model):
        path = await asyncio.to_thread(find_model, settings.model)
        engine = new_engine(msgspec.structs.replace(settings.engine_config(), model=str(path)))
        await engine.spawn()
        try:
            text = await asyncio.to_thread(load_text, settings, path)
            worker = Worker(
                broker,
                engine,
                text.processor,
                model=settings.model_name,
                worker_id=worker_id,
                sampling_defaults=text.sampling_defaults,
            )
            await worker.start()
        except EngineStartError as error:
            raise StartError(f"the engine cannot start: {error}") from error
        except (StartError, asyncio.CancelledError):
            await engine.close()
            raise
        engine.load_grammars(text.processor.tokenizer_json)
    return worker


def find_model(model: str) -> Path:
    """Where the model is; fetches it where it is not here yet. Raises StartError."""
    from workers.model.loaders.errors import ModelLoadError
    from workers.model.loaders.resolve import resolve

    try:
        return resolve(model)
    except ModelLoadError as error:
        raise StartError(f"cannot load the model: {error}") from error


class Text(NamedTuple):
    """What the front needs of a model."""

    processor: TextProcessor
    sampling_defaults: SamplingDefaults


def load_text(settings: WorkerSettings, path: Path) -> Text:
    """Load the tokenizer of the model at `path`; takes seconds. Raises StartError."""
    # Imported here: torch and transformers take seconds, and a broker that cannot be reached is told before.
    from workers.model.loaders.config import read_generation_defaults
    from workers.model.loaders.errors import ModelLoadError
    from workers.model.loaders.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(path, trust_remote_code=settings.trust_remote_code)
        if settings.chat_template:
            use_template(tokenizer, Path(settings.chat_template))
        syntax = ModelSyntax.of(tokenizer, settings.tool_parser, settings.reasoning_parser)
        trusted = settings.trust_request_chat_template
        suggested = {} if settings.generation_config == "none" else read_generation_defaults(path).sampling
        processor = TextProcessor(tokenizer, syntax, trust_request_templates=trusted)
        return Text(processor, SamplingDefaults.of(suggested))
    except ModelLoadError as error:
        raise StartError(f"cannot load the model: {error}") from error
    except msgspec.ValidationError as error:
        raise StartError(f"generation_config.json: {error}; --generation-config none passes over it") from error


def use_template(tokenizer: Any, file: Path) -> None:
    """Have the tokenizer use another chat template. Raises StartError where it cannot be read, or does not work."""
    try:
        tokenizer.chat_template = file.expanduser().read_text()
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the chat template cannot be read: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise StartError(f"the chat template {file} does not work: {error}") from error


@asynccontextmanager
async def _progress(model: str) -> AsyncIterator[None]:
    """Say that the model loads, from time to time that it still does, and how long it took."""
    started = time.monotonic()
    say(f"loading {model} ...")
    telling = asyncio.create_task(_still(model, started))
    try:
        yield
    finally:
        telling.cancel()
    say(f"loaded {model} in {time.monotonic() - started:.1f} s")


async def _still(model: str, started: float) -> None:
    while True:
        await asyncio.sleep(STILL_LOADING_SECONDS)
        say(f"still loading {model}, {time.monotonic() - started:.0f} s so far")
