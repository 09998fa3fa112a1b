"""The HTTP service, a worker's front and the real engine over a small random model, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tokenizers import processors

from api.app import create_app
from api.settings import ApiSettings
from api.store import Store
from api.store.migrate import upgrade
from broker.base import Broker
from broker.memory import MemoryHub
from schemas.topology import request_queue
from tests.api.conftest import NotifyingServer, connected
from tests.delivery.tiny_engine import TinyEngine
from tests.front import tokenizers
from workers.front.text import TextProcessor
from workers.front.worker import Worker

MODEL = "tiny"
SETTINGS = ApiSettings(discovery_seconds=1.0, max_wait=3600.0)
"""However slow the machine is, nothing is refused."""
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{{ suffix }}"
    "{% for document in documents or [] %}[{{ document.text }}]{% endfor %}"
    "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{% if False %}<tool_call>{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> Any:
    """Byte-level BPE that puts its special token in front of prompts."""
    made = tokenizers.byte_level(TEMPLATE)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizers.END} $A", special_tokens=[(tokenizers.END, made.eos_token_id)]
    )
    return made


@dataclass(frozen=True)
class Surface:
    """`http` talks to `url`, whose one worker runs `engine`; `broker` is between the two."""

    url: str
    broker: Broker
    http: httpx.AsyncClient
    engine: TinyEngine
    tokenizer: Any

    async def queued(self) -> int:
        """Requests that no worker has taken."""
        return await self.broker.queue_depth(request_queue(MODEL, "interactive").name)

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """An answer that is none but 200."""
        answer = await self.http.post(path, json={"model": MODEL} | body)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture
async def surface(tmp_path: Path) -> AsyncIterator[Surface]:
    hub, tokenizer, engine = MemoryHub(), make_tokenizer(), TinyEngine(pace=0)
    url = f"sqlite:///{tmp_path / 'headrace.db'}"
    await upgrade(url)
    store = Store(url)
    await store.open()
    async with connected(hub) as broker, connected(hub) as workers:
        text = TextProcessor(tokenizer, trust_request_templates=True)
        worker = Worker(workers, engine, text, model=MODEL, worker_id="w")
        await worker.start()
        app = create_app(broker=broker, store=store, settings=SETTINGS)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none", backlog=1024)
        server = NotifyingServer(config)
        tasks = [asyncio.create_task(worker.run()), asyncio.create_task(server.serve())]
        async with asyncio.timeout(30):
            await server.listening.wait()
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as http:
            yield Surface(base, broker, http, engine, tokenizer)
        server.should_exit = True
        await tasks[1]
        await worker.drain(0.0)
        await tasks[0]
    await store.close()
