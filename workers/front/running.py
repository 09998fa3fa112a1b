"""The jobs that this worker has, and what each engine step means for them."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence

import msgspec

from schemas.messages import EmbeddingParams, SamplingParams
from workers.front.choice import ChoiceContext, ChoiceRun, StopTokens
from workers.front.detokenize import Vocabulary
from workers.front.engine_client import EngineClient
from workers.front.frames import FrameSender
from workers.front.job_run import Ending, JobRun, failed
from workers.front.resume import Shown
from workers.front.text import Prompt
from workers.front.tools.sink import Piece
from workers.front.vector import VectorRun
from workers.protocol import BATCH_PRIORITY, AddRequest, EngineStats, StepOutput, TokenOutput

logger = logging.getLogger(__name__)

PRIORITY = {"interactive": 0, "batch": BATCH_PRIORITY}

_ONE_TOKEN = SamplingParams(max_tokens=1)
"""What stands for the vector of an input in the engine's books."""


class RunningJobs:
    """Owns the map from engine requests to the choices, or the vectors, of jobs."""

    def __init__(
        self, engine: EngineClient, frames: FrameSender, vocabulary: Vocabulary, eos_token_ids: Sequence[int]
    ) -> None:
        self._engine = engine
        self._frames = frames
        self._vocabulary = vocabulary
        self._eos = tuple(eos_token_ids)
        self._requests: dict[str, tuple[JobRun, ChoiceRun | VectorRun]] = {}
        self.by_id: dict[str, JobRun] = {}
        self._stats = EngineStats(0, 0, 0, 0, 0, 0, 0)
        self.tokens_made = 0
        self.busy_seconds = 0.0
        self._last_step = 0.0
        self._serials = itertools.count()

    @property
    def stats(self) -> EngineStats:
        """The engine's load. An engine whose last request was aborted makes no further step to say that it is idle."""
        return self._stats if self._requests else msgspec.structs.replace(self._stats, running=0, waiting=0)

    @property
    def queued_tokens(self) -> int:
        """Prompt and possible output tokens of all jobs here."""
        return sum(run.reserved_tokens for run in self.by_id.values())

    @property
    def interactive_waiting(self) -> int:
        """Interactive jobs without a token yet: those that a new one has to wait behind."""
        runs = [run for run in self.by_id.values() if run.job.job_class == "interactive"]
        return sum(not any(choice.tokens for choice in run.choices) for run in runs)

    def start(self, run: JobRun, prompt: Prompt) -> None:
        """Give the job's choices to the engine, each after the tokens that its reader has shown."""
        run.prompt = prompt
        run.serial = next(self._serials)
        sampling = run.job.sampling
        stop_tokens = StopTokens(sampling, self._eos)
        context = ChoiceContext(self._vocabulary, sampling, prompt, stop_tokens, run.job.return_token_ids)
        run.choices = [ChoiceRun(index, context) for index in range(sampling.num_outputs)]
        for choice, tokens in zip(run.choices, run.shown, strict=False):
            choice.rebuild(tokens)
        for choice in run.choices:
            self._start_choice(run, choice)
        self._frames.flush()
        self._end_if_complete(run)

    def start_inputs(self, run: JobRun, inputs: list[list[int]]) -> None:
        """Give the inputs of an embedding job to the engine."""
        run.serial = next(self._serials)
        run.vectors = [VectorRun(index, token_ids) for index, token_ids in enumerate(inputs)]
        wanted = run.job.embedding or EmbeddingParams()
        for vector in run.vectors:
            request = AddRequest(
                run.request_id(vector.index),
                vector.token_ids,
                _ONE_TOKEN,
                priority=PRIORITY[run.job.job_class] + run.job.priority,
                cache_salt=run.job.cache_salt,
                embedding=wanted,
            )
            self._submit(run, vector, request)

    def _submit(self, run: JobRun, part: ChoiceRun | VectorRun, request: AddRequest) -> None:
        if not self._requests:
            self._last_step = time.monotonic()
        self._requests[request.id] = (run, part)
        self._engine.add(request)

    def _start_choice(self, run: JobRun, choice: ChoiceRun) -> None:
        assert run.prompt is not None
        if choice.finish_reason is not None:
            self._post(run, choice, len(choice.tokens), Piece())
            return
        request = AddRequest(
            run.request_id(choice.index),
            run.prompt.token_ids,
            run.request_sampling(choice.index),
            output_token_ids=list(choice.tokens),
            priority=PRIORITY[run.job.job_class] + run.job.priority,
            cache_salt=run.job.cache_salt,
        )
        self._submit(run, choice, request)

    def on_step(self, step: StepOutput) -> None:
        """Take one engine step: one frame per reader. A job whose output cannot be taken fails alone."""
        self._note(step.stats)
        for output in step.outputs:
            entry = self._requests.get(output.id)
            if entry is None:
                continue
            try:
                self._take(*entry, output)
            except Exception:
                logger.exception("output of request %s could not be taken", output.id)
                self.end(entry[0], failed("internal error"))
        self._frames.flush()

    def _note(self, stats: EngineStats) -> None:
        """Time counts as busy while the engine has requests."""
        now = time.monotonic()
        if self._requests:
            self.busy_seconds += now - self._last_step
        self._last_step = now
        self._stats = stats

    def _take(self, run: JobRun, part: ChoiceRun | VectorRun, output: TokenOutput) -> None:
        if output.error is not None:
            self.end(run, failed(output.error))
        elif isinstance(part, VectorRun):
            self._take_vector(run, part, output)
        else:
            self._take_tokens(run, part, output)

    def _take_vector(self, run: JobRun, vector: VectorRun, output: TokenOutput) -> None:
        vector.take(output)
        del self._requests[output.id]
        self.tokens_made += len(vector.token_ids)
        if all(one.vector is not None for one in run.vectors):
            self.end(run, Ending("completed"))

    def _take_tokens(self, run: JobRun, choice: ChoiceRun, output: TokenOutput) -> None:
        offset = len(choice.tokens)
        piece = choice.take(output)
        self.tokens_made += len(choice.tokens) - offset
        self._post(run, choice, offset, piece)
        if choice.finish_reason is not None:
            del self._requests[output.id]
            if output.finish_reason is None:
                self._engine.abort([output.id])
            self._end_if_complete(run)

    def _post(self, run: JobRun, choice: ChoiceRun, offset: int, piece: Piece) -> None:
        if run.streaming and run.reader is not None:
            self._frames.post(run.reader, choice.delta(run.job.id, run.epoch, offset, piece))

    def _end_if_complete(self, run: JobRun) -> None:
        if all(choice.finish_reason is not None for choice in run.choices):
            self.end(run, Ending("completed"))

    def end(self, run: JobRun, ending: Ending | None) -> None:
        """End a job, whatever of it still runs. None leaves it to another worker."""
        self.stop(run)
        if not run.ended.done():
            run.ended.set_result(ending)

    def forget(self, run: JobRun) -> None:
        """The job is no longer here."""
        self.stop(run)
        self.by_id.pop(run.job.id, None)
        if not run.settled.done():
            run.settled.set_result(False)

    def stop(self, run: JobRun) -> None:
        """Abort what the engine still runs of a job."""
        parts: list[ChoiceRun | VectorRun] = [*run.choices, *run.vectors]
        ids = [run.request_id(part.index) for part in parts]
        running = [request_id for request_id in ids if self._requests.pop(request_id, None) is not None]
        if running:
            self._engine.abort(running)

    def catch_up(self, run: JobRun, shown: Shown) -> None:
        """Send the reader all that came after what it has shown, and stream to it from here on. A delta without tokens
        tells a reader that lacks nothing that the job is here."""
        known = [*shown, *[[] for _ in range(len(run.choices) - len(shown))]]
        pairs = list(zip(run.choices, known, strict=True))
        if any(choice.tokens[: len(tokens)] != tokens for choice, tokens in pairs):
            self._restart(run, shown)
            return
        run.streaming = run.reader is not None
        for choice, tokens in pairs:
            is_new = len(tokens) < len(choice.tokens) or choice.finish_reason is not None
            self._post(run, choice, len(tokens), choice.since(len(tokens)) if is_new else Piece())
        self._frames.flush()

    def _restart(self, run: JobRun, shown: Shown) -> None:
        """The reader has shown more tokens than were made here, or others: its tokens count. Go on behind them."""
        assert run.prompt is not None
        if run.ended.done():
            logger.error("reader %s has shown other tokens of job %s than were made", run.reader, run.job.id)
            return
        self.stop(run)
        run.shown = shown
        run.streaming = run.reader is not None
        self.start(run, run.prompt)
