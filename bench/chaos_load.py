"""The clients of `headrace bench chaos`: streams and whole answers over HTTP, batch lines, jobs straight to the queue.

A client that is told nothing, or that the service is not there, asks again; with an Idempotency-Key, or with the same job
id, that is the same job. Nobody believes an answer: its text is compared with that of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from api.errors import ApiError
from api.queue_client import QueueClient
from schemas.messages import Delta, Job, Result, SamplingParams

CHAT = "/v1/chat/completions"
NUMBERS = (26, 27, 12, 45, 30, 31, 16, 65, 18, 51, 20, 37, 22, 23, 24, 25)
"""What the requests ask about. With these no choice of the model's is a close one: between two tokens lies more than the
rounding of any batch can move (tests/chaos/test_specs.py), so that each request has one right answer."""
SEEDS_BELOW = 10
"""A request's seed is its number less this."""
SPECS = len(NUMBERS)
"""Different requests; each is asked many times."""
TOP_K = 4
"""Of the sampled ones. Among all 257 tokens some draw would fall on the border between two."""
BATCH_LINES = 25
REQUEST_TIMEOUT = 300.0
RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 5.0
UNCERTAIN = (408, 409, 429, 500, 502, 503, 504)
"""Statuses after which OpenAI's clients ask again."""


def request_body(number: int, model: str) -> dict[str, Any]:
    """Half of them greedy, half sampled; 300 to 580 tokens."""
    spec = number % SPECS
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me about the number {NUMBERS[spec]}."}],
        "max_tokens": 300 + 40 * (spec % 8),
        "temperature": 0.8 * (spec % 2),
        "top_k": TOP_K,
        "seed": NUMBERS[spec] - SEEDS_BELOW,
        "ignore_eos": True,
    }


@dataclass(slots=True)
class Record:
    """What one client saw. `job` is known once the service has accepted it; times are of the monotonic clock."""

    number: int
    door: str
    job: str = ""
    text: str = ""
    tokens: int = 0
    counted: int | None = None
    error: str = ""
    cut: bool = False
    answered: bool = False
    times: list[float] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return bool(self.job)

    def gap(self) -> float:
        """The longest silence within the stream."""
        return max((after - before for before, after in zip(self.times, self.times[1:], strict=False)), default=0.0)

    def was_under_way(self, moment: float) -> bool:
        return len(self.times) > 1 and self.times[0] < moment < self.times[-1]


class Load:
    """Runs jobs through all doors and keeps what came of them."""

    def __init__(self, urls: list[str], model: str, client: QueueClient) -> None:
        self.records: list[Record] = []
        self.references: dict[int, str] = {}
        self.refused = 0
        self._urls = urls
        self._model = model
        self._client = client
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(timeout=REQUEST_TIMEOUT, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    def _record(self, number: int, door: str) -> Record:
        record = Record(number, door)
        self.records.append(record)
        return record

    async def learn(self) -> None:
        """The texts of an undisturbed run, one after another."""
        for number in range(SPECS):
            record = self._record(number, "reference")
            await self._whole(record)
            self.references[number] = record.text

    async def one(self, number: int) -> None:
        """One job through the door that its number names."""
        doors = {0: self._stream, 1: self._whole, 2: self._stream, 3: self._direct}
        name = {0: "stream", 1: "whole", 2: "stream without key", 3: "direct"}[number % 4]
        await doors[number % 4](self._record(number, name))

    def is_right(self, record: Record) -> bool:
        """Whether an answer is, letter for letter, the undisturbed one, and its tokens are as many as are counted."""
        same = record.text == self.references[record.number % SPECS]
        return same and (record.counted is None or record.counted == record.tokens)

    async def _attempts(self, record: Record) -> AsyncIterator[str]:
        """Base URLs to try, one after another, with growing pauses between."""
        pause = RETRY_SECONDS
        for attempt in range(record.number, record.number + 10_000):
            yield self._urls[attempt % len(self._urls)]
            await asyncio.sleep(pause)
            pause = min(MAX_RETRY_SECONDS, 1.5 * pause)

    def _headers(self, record: Record) -> dict[str, str]:
        keyed = record.door in ("stream", "whole", "reference")
        return {"Idempotency-Key": f"{record.door}-{record.number}"} if keyed else {}

    def _refused(self, record: Record, status: int, text: str) -> bool:
        """Whether to ask again; else the answer is final, and an error."""
        if status in UNCERTAIN:
            self.refused += 1
            return True
        record.error = f"{status}: {text[:200]}"
        return False

    async def _whole(self, record: Record) -> None:
        body = request_body(record.number, self._model)
        async for url in self._attempts(record):
            try:
                answer = await self._http.post(url + CHAT, json=body, headers=self._headers(record))
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                return _take_whole(record, answer.json())
            if not self._refused(record, answer.status_code, answer.text):
                return None
        return None

    async def _stream(self, record: Record) -> None:
        """A stream that is cut goes on at another api process where its client has a key; without one it is over."""
        extra = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
        body = request_body(record.number, self._model) | extra
        async for url in self._attempts(record):
            try:
                async with self._http.stream("POST", url + CHAT, json=body, headers=self._headers(record)) as answer:
                    if answer.status_code == 200:
                        await self._read(record, answer)
                    elif self._refused(record, answer.status_code, (await answer.aread()).decode()):
                        continue
            except httpx.TransportError:
                pass
            if record.answered or record.error:
                return
            if record.accepted and not self._headers(record):
                record.cut = True
                return

    async def _read(self, record: Record, answer: httpx.Response) -> None:
        """All of a stream, from its beginning: what an earlier attempt brought is forgotten."""
        record.text, record.counted, record.error, record.times = "", 0, "", []
        done = False
        with contextlib.suppress(httpx.TransportError):
            async for line in answer.aiter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    _take_chunk(record, json.loads(line[6:]))
        record.answered = done and not record.error

    async def _direct(self, record: Record) -> None:
        """Published by the same id until confirmed; every second one streamed."""
        asked = request_body(record.number, self._model)
        sampling = {name: asked[name] for name in ("max_tokens", "temperature", "top_k", "seed", "ignore_eos")}
        job = Job(
            id=f"direct-{record.number}",
            model=self._model,
            messages=asked["messages"],
            sampling=SamplingParams(**sampling),
            stream=record.number % 8 == 3,
        )
        async for _ in self._attempts(record):
            try:
                return await self._follow(record, job)
            except ApiError as error:
                if record.accepted or not self._refused(record, error.status, error.message):
                    record.error = f"{error.code}: {error.message}"
                    return None
        return None

    async def _follow(self, record: Record, job: Job) -> None:
        async with self._client.submit(job) as stream:
            record.job = job.id
            record.counted = 0 if job.stream else None
            async for event in stream:
                _take_event(record, event)

    async def batch(self, first: int, count: int) -> None:
        """One batch of `count` lines, from its upload to its output."""
        records = [self._record(first + index, "batch") for index in range(count)]
        await self._take_batch(records, await self._submit_batch(records))

    async def _submit_batch(self, records: list[Record]) -> dict[str, Any]:
        lines = [
            {
                "custom_id": f"line-{record.number}",
                "method": "POST",
                "url": CHAT,
                "body": request_body(record.number, self._model),
            }
            for record in records
        ]
        content = "\n".join(map(json.dumps, lines)).encode()
        key = f"batch-{records[0].number}"
        file = await self._ask(
            records[0],
            "POST",
            "/v1/files",
            headers={"Idempotency-Key": f"{key}-file"},
            data={"purpose": "batch"},
            files={"file": ("lines.jsonl", content)},
        )
        request = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = await self._ask(records[0], "POST", "/v1/batches", headers={"Idempotency-Key": key}, json=request)
        for record in records:
            record.job = f"{batch['id']}/{record.number}"  # accepted; the ledger's id comes with the output
        return batch

    async def _take_batch(self, records: list[Record], batch: dict[str, Any]) -> None:
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(1.0)
            batch = await self._ask(records[0], "GET", f"/v1/batches/{batch['id']}")
        if batch["output_file_id"] is None:
            for record in records:
                record.error = f"the batch is {batch['status']}: {batch.get('errors')}"
            return
        output = await self._ask(records[0], "GET", f"/v1/files/{batch['output_file_id']}/content")
        by_line = {f"line-{record.number}": record for record in records}
        for line in output["lines"]:
            record = by_line[line["custom_id"]]
            if record.answered:
                record.error = "twice in the output"
            _take_whole(record, line["response"]["body"])
        for record in records:
            record.error = record.error or ("" if record.answered else "not in the output")

    async def _ask(self, record: Record, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON answer, asked for until it comes; of a file, its lines. Raises RuntimeError where it is refused."""
        async for url in self._attempts(record):
            try:
                answer = await self._http.request(method, url + path, **options)
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                if path.endswith("/content"):
                    return {"lines": [json.loads(line) for line in answer.text.splitlines()]}
                body: dict[str, Any] = answer.json()
                return body
            if not self._refused(record, answer.status_code, answer.text):
                break
        raise RuntimeError(f"{method} {path}: {record.error}")


def _take_whole(record: Record, answer: dict[str, Any]) -> None:
    record.job = _job_of(answer["id"])
    record.text = answer["choices"][0]["message"]["content"]
    record.tokens = answer["usage"]["completion_tokens"]
    record.answered = True


def _take_chunk(record: Record, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        record.error = json.dumps(chunk["error"])
        return
    record.job = _job_of(chunk["id"])
    if chunk["usage"]:
        record.tokens = chunk["usage"]["completion_tokens"]
    for choice in chunk["choices"]:
        if choice["delta"].get("content") or choice["finish_reason"]:
            record.times.append(time.monotonic())
        record.text += choice["delta"].get("content") or ""
        if record.counted is not None:
            record.counted += len((choice.get("logprobs") or {}).get("content") or [])


def _take_event(record: Record, event: Delta | Result) -> None:
    if isinstance(event, Delta):
        record.times.append(time.monotonic())
        record.text += event.text
        record.counted = (record.counted or 0) + len(event.token_ids)
        return
    record.tokens = event.usage.completion_tokens
    record.answered = event.outcome == "completed"
    if not record.answered:
        record.error = f"{event.outcome}: {event.error}"
    for choice in event.choices:
        record.text = choice.text


def _job_of(body_id: str) -> str:
    """`chatcmpl-ID` answers the job ID."""
    return body_id.split("-", 1)[1]
