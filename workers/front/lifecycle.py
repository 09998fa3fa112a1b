"""What happens to one delivery: intake, run, Result, frame, acknowledgement, in this order.

The Result is confirmed by the broker before the delivery is acknowledged, so a worker that dies anywhere in between
leaves a job that is delivered again. A second Result of the same job changes nothing: the ledger is keyed by job id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from broker.base import BrokerError, Delivery
from schemas.messages import Control, Job, JobClass, Result
from schemas.topology import MAX_ATTEMPTS, request_queue
from workers.front.defaults import SamplingDefaults
from workers.front.duplicates import id_taken, is_same
from workers.front.ended import EndedJobs
from workers.front.frames import FrameSender
from workers.front.inputs import check_kind
from workers.front.intake import Refusal, read_job
from workers.front.job_run import Ending, JobRun, expired, failed
from workers.front.limits import InvalidJobError, Limits, invalid
from workers.front.results import ResultPublisher
from workers.front.resume import ResumeDesk, Shown
from workers.front.running import RunningJobs
from workers.front.suspects import Suspects
from workers.front.text import TextProcessor

logger = logging.getLogger(__name__)

REMEMBERED_CANCELS = 4096
"""A cancel may come before its job does: the queue is long, and control messages overtake it."""

GIVE_BACK_TIMEOUT = 5.0
"""Seconds for the broker to take back what has not ended."""


@dataclass(frozen=True, slots=True)
class Served:
    """What this worker serves, and by which name it signs."""

    model: str
    worker: str
    limits: Limits
    defaults: SamplingDefaults


class JobLifecycle:
    """Handles deliveries of the request queues and the control messages that concern jobs."""

    def __init__(
        self,
        served: Served,
        text: TextProcessor,
        running: RunningJobs,
        frames: FrameSender,
        results: ResultPublisher,
        resume: ResumeDesk,
    ) -> None:
        self._served = served
        self._text = text
        self._running = running
        self._frames = frames
        self._results = results
        self._resume = resume
        self._ended = EndedJobs()
        self._suspects = Suspects()
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._handling: set[asyncio.Event] = set()

    async def handle(self, delivery: Delivery) -> None:
        """See one delivery through to its acknowledgement."""
        done = asyncio.Event()
        self._handling.add(done)
        try:
            await self._handle(delivery)
        finally:
            self._handling.discard(done)
            done.set()

    async def close(self, grace: float) -> None:
        """Let what is here end within `grace` seconds; the rest is given back to its queue."""
        await self._idle(grace)
        self._results.close()
        for run in list(self._running.by_id.values()):
            self._running.end(run, None)
        await self._idle(GIVE_BACK_TIMEOUT)

    async def _idle(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._handling:
                    await next(iter(self._handling)).wait()

    async def _handle(self, delivery: Delivery) -> None:
        job = read_job(delivery.message)
        if isinstance(job, Refusal):
            await self._refuse(job, delivery)
            return
        job = self._served.defaults.applied(job)
        if (run := self._known(job.id)) is None:
            await self._run(job, delivery)
        elif not is_same(run.job, job):
            await self._refuse_id(run, job, delivery)
        elif not run.settled.done():
            await self._share(run, job, delivery)
        elif delivery.delivery_count == 0:
            await self._repeat(job, delivery)
        else:
            await self._run(job, delivery)

    def _known(self, job: str) -> JobRun | None:
        """The job as it runs here, or as it ended lately."""
        ended = self._ended.get(job)
        return self._running.by_id.get(job) or (None if ended is None else ended.run)

    def on_control(self, control: Control) -> None:
        """Cancel, or a reader's word on what it has shown."""
        run = self._running.by_id.get(control.job)
        if control.kind == "cancel":
            self._cancel(control.job, run)
        elif control.kind == "resume" and not self._resume.answer(control):
            self._on_resume(control, run)

    def _cancel(self, job: str, run: JobRun | None) -> None:
        if run is not None:
            self._running.end(run, Ending("cancelled"))
            self._resume.give_up(job)
            return
        self._cancelled[job] = None
        if len(self._cancelled) > REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)

    def _on_resume(self, control: Control, run: JobRun | None) -> None:
        """A reader says unasked what it has shown: it misses something, or its answer to our own question is late. In a
        higher epoch than ours it answers another worker's question: the job is that worker's now."""
        if run is None:
            self._tell_again(control)
        elif control.epoch > run.epoch:
            logger.warning("job %s is run by another worker in epoch %d", run.job.id, control.epoch)
            self._running.end(run, None)
        else:
            run.reader = control.reply_to or run.reader
            if run.job.stream and run.choices and self._is_valid(control.shown, run):
                self._running.catch_up(run, control.shown)

    def _tell_again(self, control: Control) -> None:
        """The job has ended here, and its reader waits for the end."""
        ended = self._ended.get(control.job)
        if ended is None or control.epoch > ended.run.epoch:
            return
        run = ended.run
        run.reader = control.reply_to or run.reader
        if run.job.stream and run.choices and self._is_valid(control.shown, run):
            self._running.catch_up(run, control.shown)
        assert run.reader is not None
        self._frames.post_result(run.reader, msgspec.structs.replace(ended.result, epoch=run.epoch))

    async def _run(self, job: Job, delivery: Delivery) -> None:
        run = JobRun.begin(job, _reader(job, delivery), delivery.delivery_count)
        self._running.by_id[job.id] = run
        try:
            ending = await self._ending(run)
            if ending is not None and await self._settle(run, ending, delivery):
                run.settled.set_result(True)
        finally:
            self._running.forget(run)
        if not run.settled.result():
            await delivery.reject(requeue=True)

    async def _share(self, run: JobRun, job: Job, delivery: Delivery) -> None:
        """The job is here already: a second copy, or the same one after a lost connection. Both wait for one Result."""
        if delivery.delivery_count > run.epoch:
            await self._rejoin(run, delivery.delivery_count)
        elif (reader := _reader(job, delivery)) is not None and reader != run.reader:
            self._attach(run, reader)
        await asyncio.wait([run.settled])
        if run.settled.result():
            await delivery.ack()
        else:
            await delivery.reject(requeue=True)

    def _attach(self, run: JobRun, reader: str) -> None:
        """Whoever published it again reads it from its beginning, and has it from here on."""
        run.reader, run.streaming = reader, run.job.stream
        if run.job.stream and run.choices:
            self._running.catch_up(run, [])

    async def _repeat(self, job: Job, delivery: Delivery) -> None:
        """The job ended here lately, and is published again: its end is told again."""
        ended = self._ended.get(job.id)
        reader = _reader(job, delivery)
        if ended is not None and reader is not None:
            self._attach(ended.run, reader)
            self._frames.post_result(reader, ended.result)
        await delivery.ack()

    async def _refuse_id(self, run: JobRun, job: Job, delivery: Delivery) -> None:
        """Another job under an id that is taken. No Result is recorded, for the ledger's belongs to the first; a reader
        of the first is not told either, for it would take it for that one's."""
        error = id_taken()
        logger.warning("job %s: %s", job.id, error.message)
        if not await self._bury(delivery, error.message, job.job_class):
            await delivery.reject(requeue=True)
            return
        reader = _reader(job, delivery)
        if reader is not None and reader != run.reader:
            other = JobRun.begin(job, reader, delivery.delivery_count)
            await self._tell(reader, other.result(Ending("failed", error), self._served.model, self._served.worker))
        await delivery.ack()

    async def _rejoin(self, run: JobRun, epoch: int) -> None:
        """Frames were lost with the connection: go on behind what the reader has shown. In the new epoch from now on: the
        reader knows it from our question."""
        run.epoch = epoch
        shown = None
        if run.job.stream and run.reader is not None:
            shown = await self._resume.ask(run.reader, run.job.id, epoch)
        run.streaming = shown is not None and self._is_valid(shown, run)
        if shown is None or not run.streaming:
            return
        if run.choices:
            self._running.catch_up(run, shown)
        else:
            run.shown = shown

    async def _ending(self, run: JobRun) -> Ending | None:
        """Run the job to its end, whatever that is."""
        deadline = run.job.deadline
        if run.epoch >= MAX_ATTEMPTS:
            return failed(f"gave up after {run.epoch} attempts", bury=True)
        if run.job.id in self._cancelled:
            del self._cancelled[run.job.id]
            return Ending("cancelled")
        if deadline is not None and deadline <= time.time():
            return expired()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.time()) as limit:
                async with self._suspects.turn(run):
                    return await self._execute(run)
        except InvalidJobError as error:
            return Ending("failed", error.error)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return expired()
            logger.exception("job %s failed", run.job.id)
            return failed("internal error")
        finally:
            self._running.stop(run)

    async def _execute(self, run: JobRun) -> Ending | None:
        if run.job.model != self._served.model:
            raise invalid(f"this worker serves {self._served.model}", param="model", code="model_not_found", status=404)
        check_kind(run.job, self._served.limits)
        if run.job.inputs is not None:
            return await self._embed(run)
        prompt = await self._text.prepare(run.job, self._served.limits)
        prompt = self._served.defaults.limited(run.job, prompt)
        if run.epoch > 0 and run.streaming:
            await self._ask_shown(run)
        if not run.ended.done():
            self._running.start(run, prompt)
        return await run.ended

    async def _embed(self, run: JobRun) -> Ending | None:
        inputs = await self._text.inputs.prepare(run.job, self._served.limits)
        if not run.ended.done():
            self._running.start_inputs(run, inputs)
        return await run.ended

    async def _ask_shown(self, run: JobRun) -> None:
        """A redelivered job goes on behind what its reader has shown; without an answer only its Result is made."""
        assert run.reader is not None
        shown = await self._resume.ask(run.reader, run.job.id, run.epoch)
        run.streaming = shown is not None and self._is_valid(shown, run)
        if shown is not None and run.streaming:
            run.shown = shown

    def _is_valid(self, shown: Shown, run: JobRun) -> bool:
        size = self._served.limits.vocab_size
        known = all(0 <= token_id < size for tokens in shown for token_id in tokens)
        if not known or len(shown) > run.job.sampling.n:
            logger.error("reader %s has shown what job %s cannot have made", run.reader, run.job.id)
            return False
        return True

    async def _settle(self, run: JobRun, ending: Ending, delivery: Delivery) -> bool:
        """Result, frame, acknowledgement. False where the worker closes before the Result is confirmed, or where the
        reader could not be told: the job is then delivered again."""
        full = run.result(ending, self._served.model, self._served.worker)
        brief = msgspec.structs.replace(full, choices=[])
        if ending.bury and not await self._bury(delivery, _reason(ending), run.job.job_class):
            return False
        if not await self._results.publish(full if run.job.store_output else brief):
            return False
        if run.reader is not None:
            # It may have come again while the Result waited for its confirmation; the reader knows the newer epoch then.
            told = msgspec.structs.replace(brief if run.job.stream else full, epoch=run.epoch)
            if not await self._tell(run.reader, told):
                return False
            self._ended.add(run, told)
        await delivery.ack()
        return True

    async def _tell(self, reader: str, result: Result) -> bool:
        try:
            await self._frames.send_result(reader, result)
        except BrokerError as error:
            logger.warning("the result of job %s could not be sent to %s: %s", result.job, reader, error)
            return False
        return True

    async def _refuse(self, refusal: Refusal, delivery: Delivery) -> None:
        """A malformed job: a dead letter, and a failed Result where it has an id."""
        logger.warning("malformed job %s: %s", refusal.job, refusal.reason)
        if await self._bury(delivery, refusal.reason, refusal.job_class) and await self._end_refused(refusal, delivery):
            await delivery.ack()
        else:
            await delivery.reject(requeue=True)

    async def _end_refused(self, refusal: Refusal, delivery: Delivery) -> bool:
        if refusal.job is None:
            return True
        result = refusal.result(self._served.model, self._served.worker, delivery.delivery_count)
        if not await self._results.publish(result):
            return False
        return refusal.reader is None or await self._tell(refusal.reader, result)

    async def _bury(self, delivery: Delivery, reason: str, job_class: JobClass) -> bool:
        source = request_queue(self._served.model, job_class).name
        attempts = max(1, delivery.delivery_count)
        return await self._results.bury(delivery.message, reason, attempts=attempts, source=source)


def _reader(job: Job, delivery: Delivery) -> str | None:
    return job.reply_to or delivery.message.reply_to


def _reason(ending: Ending) -> str:
    return ending.error.message if ending.error is not None else ending.outcome
