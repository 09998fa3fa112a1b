"""A worker without a model: it says the words of the prompt, and misbehaves where the first of them asks for it.

echo        default: the words, one token each
fail        fails before the first token
fail-late   fails after two words
hang        says nothing until it is cancelled
hang-late   says two words, then nothing until it is cancelled
crash       says two words, gives the job back, asks its reader what it has shown, and goes on from there
repeat      says some words twice, and some in an epoch that is over
gap         leaves a word out
flood       says 100,000 tokens of 200 characters
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from broker.base import Broker, Delivery, Message, Subscription
from schemas.messages import (
    Choice,
    Control,
    Delta,
    ErrorInfo,
    Frame,
    Job,
    PositionLogprobs,
    Result,
    ResumeQuery,
    Status,
    TextAnswer,
    TokenLogprob,
    Usage,
    decode,
    encode,
)
from schemas.topology import (
    CONTROL,
    JOB_CLASSES,
    RESULTS,
    RESULTS_KEY,
    STATUS,
    reply_address,
    request_queue,
    topology,
)


class StubWorker:
    """Serves `model` through `broker`. `jobs`, `cancelled` and `questions` hold what it has seen."""

    def __init__(self, broker: Broker, model: str = "stub", name: str = "stub-1", dimensions: int = 0) -> None:
        self.jobs: dict[str, Job] = {}
        self.cancelled: set[str] = set()
        self.questions: list[Control] = []
        self.asked: list[Job] = []
        self.seen = asyncio.Condition()
        self.sampling_defaults: dict[str, float] = {}
        self._broker = broker
        self._model = model
        self._name = name
        self._dimensions = dimensions
        self._resumes: dict[str, asyncio.Future[Control]] = {}
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        await self._broker.declare(topology((self._model,)))
        self._subscriptions.append(await self._broker.subscribe(self._on_control, exchange=CONTROL))
        for job_class in JOB_CLASSES:
            queue = request_queue(self._model, job_class).name
            self._subscriptions.append(await self._broker.consume(queue, self._on_job, prefetch=64))
        await self.announce()

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            await subscription.cancel()
        await self.announce(leaving=True)

    async def announce(self, *, leaving: bool = False) -> None:
        status = Status(
            worker=self._name,
            model=self._model,
            max_model_len=512,
            vocab_size=1000,
            created=1,
            embedding_dimensions=self._dimensions,
            sampling_defaults=self.sampling_defaults,
            leaving=leaving,
        )
        await self._broker.publish(STATUS, "", Message(encode(status)), confirm=False)

    async def until_cancelled(self, count: int = 1) -> None:
        """Wait until `count` jobs have been cancelled."""
        async with asyncio.timeout(60), self.seen:
            await self.seen.wait_for(lambda: len(self.cancelled) >= count)

    async def until_asked(self, jobs: int) -> None:
        """Wait until a reader has told, unasked, what it has of so many jobs."""
        async with asyncio.timeout(60), self.seen:
            await self.seen.wait_for(lambda: len({asked.job for asked in self.questions}) >= jobs)

    async def until_jobs(self, count: int) -> None:
        """Wait until `count` jobs have arrived."""
        async with asyncio.timeout(60), self.seen:
            await self.seen.wait_for(lambda: len(self.jobs) >= count)

    async def _on_control(self, body: bytes) -> None:
        control = decode(Control, body)
        if control.kind == "announce":
            await self.announce()
        elif control.kind == "resume" and (waiting := self._resumes.pop(control.job, None)) is not None:
            waiting.set_result(control)
        elif control.kind == "resume":
            async with self.seen:
                self.questions.append(control)
                self.seen.notify_all()
        elif control.kind == "tokenize" and control.worker == self._name and control.question is not None:
            await self._tokenize(control.question)
        elif control.kind == "cancel":
            async with self.seen:
                self.cancelled.add(control.job)
                self.seen.notify_all()

    async def _tokenize(self, question: Job) -> None:
        """A token a word, numbered on; silent where the first word asks for it."""
        self.asked.append(question)
        words = _words(question)
        if words[:1] == ["silence"] or question.reply_to is None:
            return
        error = ErrorInfo(message="cannot", param="prompt") if words[:1] == ["fail"] else None
        answer = TextAnswer(
            question=question.id, token_ids=list(range(len(words))), tokens=words, text=" ".join(words), error=error
        )
        frame = Frame(worker=self._name, answers=[answer])
        await self._broker.publish(*reply_address(question.reply_to), Message(encode(frame)), confirm=False)

    async def _on_job(self, delivery: Delivery) -> None:
        job = decode(Job, delivery.message.body)
        async with self.seen:
            self.jobs[job.id] = job
            self.seen.notify_all()
        run = _Run(self._broker, self._name, job, delivery.delivery_count)
        word = run.words[0] if run.words else "echo"
        if word == "crash" and delivery.delivery_count == 0:
            await run.say(0, 2)
            await delivery.reject(requeue=True)
            return
        await self._behave(word, run)
        await delivery.ack()

    async def _behave(self, word: str, run: _Run) -> None:
        if word == "fail":
            await run.end(error=ErrorInfo(message="too long", param="messages", code="context_length_exceeded"))
        elif word == "fail-late":
            await run.say(0, 2)
            await run.end(error=ErrorInfo(message="broken", type="server_error", status=500))
        elif word in ("hang", "hang-late"):
            await run.say(0, 2 if word == "hang-late" else 0)
            async with self.seen:
                await self.seen.wait_for(lambda: run.job.id in self.cancelled)
            await run.end(outcome="cancelled")
        elif word == "crash":
            await run.go_on(await self._ask(run.job.id, run.epoch))
        elif word == "repeat":
            await run.repeat()
        elif word == "gap":
            await run.say(0, 1)
            await run.say(2, 3)
            await run.end()
        elif word == "mute":
            await run.end()
        elif word == "flood":
            await run.flood(100_000)
        else:
            await run.go_on([[]] * run.job.sampling.n)

    async def _ask(self, job_id: str, epoch: int) -> list[list[int]]:
        """What the reader of the job has shown."""
        answer = self._resumes[job_id] = asyncio.get_running_loop().create_future()
        reply_to = self.jobs[job_id].reply_to
        assert reply_to is not None
        frame = Frame(worker=self._name, queries=[ResumeQuery(job=job_id, epoch=epoch)])
        await self._broker.publish(*reply_address(reply_to), Message(encode(frame)), confirm=False)
        async with asyncio.timeout(60):
            return (await answer).shown


class _Run:
    """One job: its words, and how to say them."""

    def __init__(self, broker: Broker, worker: str, job: Job, epoch: int) -> None:
        self.job = job
        self.epoch = epoch
        self.words = _words(job)
        self.shown = _until_stop(self.words, job)
        self._broker = broker
        self._worker = worker
        self._counts = [0] * job.sampling.n

    async def say(self, first: int, last: int, *, epoch: int | None = None) -> None:
        """Words `first` to `last` of every choice, one frame a word."""
        for offset in range(first, min(last, len(self.shown))):
            await self._send(deltas=[self._delta(choice, offset, epoch) for choice in range(self.job.sampling.n)])

    async def go_on(self, shown: Sequence[Sequence[int]]) -> None:
        """Everything after the tokens that are shown, and the end."""
        if self.job.stream:
            await self.say(len(shown[0]), len(self.shown) - 1)
            await self._send(deltas=[self._last(choice) for choice in range(self.job.sampling.n)])
        await self.end()

    async def repeat(self) -> None:
        await self.say(0, 2)
        await self.say(0, 2)
        await self.say(2, 3, epoch=self.epoch + 1)
        await self.say(3, 4, epoch=self.epoch)
        self.epoch += 1
        await self.go_on([list(range(3))])

    async def flood(self, tokens: int) -> None:
        for offset in range(0, tokens, 100):
            await asyncio.sleep(0)  # as a worker in another process would, leave the reader its turn
            ids = list(range(offset, offset + 100))
            await self._send(
                [Delta(job=self.job.id, epoch=self.epoch, offset=offset, text="x" * 20_000, token_ids=ids)]
            )
        await self.end()

    async def end(self, outcome: Any = "completed", error: ErrorInfo | None = None) -> None:
        """The Result, to the results queue and to the reader."""
        choices = self._vectors() or [
            Choice(
                index=index,
                text=self._text(0, len(self.shown)),
                token_ids=list(range(len(self.shown))),
                finish_reason=self._finish(),
                logprobs=self._logprobs(0, len(self.shown)),
                prompt_token_ids=self._prompt(0)["prompt_token_ids"],
            )
            for index in range(self.job.sampling.n)
        ]
        result = Result(
            job=self.job.id,
            model=self.job.model,
            outcome="failed" if error else outcome,
            epoch=self.epoch,
            usage=self._usage(),
            choices=[] if self.job.stream or error else choices,
            error=error,
            created=self.job.created,
            worker=self._worker,
        )
        kept = msgspec.structs.replace(result, choices=choices if self.job.store_output and not error else [])
        await self._broker.publish(RESULTS, RESULTS_KEY, Message(encode(kept), message_id=result.job))
        await self._send(results=[result])

    def _usage(self) -> Usage:
        if self.job.inputs is not None:
            return Usage(prompt_tokens=sum(map(_length, self.job.inputs)))
        return Usage(prompt_tokens=len(self.words), completion_tokens=len(self.shown) * self.job.sampling.n)

    def _vectors(self) -> list[Choice]:
        """Of each input its number and its length, over four."""
        return [
            Choice(
                index=index,
                text="",
                token_ids=[],
                finish_reason="stop",
                embedding=array("f", [index / 4, _length(one) / 4]).tobytes(),
            )
            for index, one in enumerate(self.job.inputs or [])
        ]

    def _delta(self, choice: int, offset: int, epoch: int | None) -> Delta:
        return Delta(
            job=self.job.id,
            epoch=self.epoch if epoch is None else epoch,
            offset=offset,
            choice=choice,
            text=self._text(offset, offset + 1),
            token_ids=[offset],
            logprobs=self._logprobs(offset, offset + 1),
            **self._prompt(offset),
        )

    def _last(self, choice: int) -> Delta:
        offset = len(self.shown) - 1
        return Delta(
            job=self.job.id,
            epoch=self.epoch,
            offset=offset,
            choice=choice,
            text=self._text(offset, offset + 1),
            token_ids=[offset],
            logprobs=self._logprobs(offset, offset + 1),
            finish_reason=self._finish(),
            **self._prompt(offset),
        )

    def _prompt(self, offset: int) -> dict[str, Any]:
        """What the first delta says of the prompt."""
        ids = [100 + number for number in range(len(self.words))] if self.job.return_token_ids else None
        return {} if offset else {"prompt_tokens": len(self.words), "prompt_token_ids": ids}

    def _text(self, first: int, last: int) -> str:
        words = self.shown[first:last]
        return " ".join(words) if first == 0 else " " + " ".join(words)

    def _finish(self) -> Any:
        limit = self.job.sampling.max_tokens
        return "length" if limit is not None and len(self.shown) == limit < len(self.words) else "stop"

    def _logprobs(self, first: int, last: int) -> list[PositionLogprobs] | None:
        if self.job.sampling.logprobs is None:
            return None
        tokens = [
            TokenLogprob(self._text(offset, offset + 1), -0.5, list(self._text(offset, offset + 1).encode()))
            for offset in range(first, last)
        ]
        return [PositionLogprobs(token, [token] * self.job.sampling.logprobs) for token in tokens]

    async def _send(self, deltas: Sequence[Delta] = (), results: Sequence[Result] = ()) -> None:
        if self.job.reply_to is not None and (deltas or results):
            frame = Frame(worker=self._worker, deltas=list(deltas) if self.job.stream else [], results=list(results))
            await self._broker.publish(*reply_address(self.job.reply_to), Message(encode(frame)), confirm=False)


def _length(one: str | list[int]) -> int:
    return len(one.split() if isinstance(one, str) else one)


def _words(job: Job) -> list[str]:
    if job.inputs is not None:
        return job.inputs[0].split() if isinstance(job.inputs[0], str) else []
    if job.messages is not None:
        return str(job.messages[-1]["content"]).split()
    if job.prompt is not None:
        return job.prompt.split()
    return [f"t{token}" for token in job.prompt_token_ids or []]


def _until_stop(words: list[str], job: Job) -> list[str]:
    stops = [words.index(stop) for stop in job.sampling.stop if stop in words]
    return words[: min([*stops, job.sampling.max_tokens or len(words)])]


@asynccontextmanager
async def serving(broker: Broker, model: str = "stub", name: str = "stub-1", dimensions: int = 0) -> Any:
    """A StubWorker for the duration of the block; with `dimensions` of a model that makes embeddings."""
    worker = StubWorker(broker, model, name, dimensions)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
