"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count

from torch import Tensor

from schemas.messages import FinishReason, SamplingParams
from workers.engine.masks import TokenMasks
from workers.engine.plan import StepPlan
from workers.engine.request import Request, RequestState
from workers.engine.runner import ModelRunner, StepHandle
from workers.engine.sampler import Sampled
from workers.engine.scheduler import Scheduler
from workers.engine.scores import Scores
from workers.grammar import GrammarError, Grammars, Matcher
from workers.model.pooling import finished
from workers.protocol import AddRequest, EngineStats, TokenLogprobs, TokenOutput

logger = logging.getLogger(__name__)


class InvalidRequest(ValueError):
    """The engine cannot run this request; the message says why."""


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step of so many `tokens`, launched `at` (seconds of the performance counter). `requests` are those that it samples
    for, `scored` those of whose prompts it scores so many tokens, from where."""

    at: float
    tokens: int
    handle: StepHandle
    requests: list[Request]
    scored: list[tuple[Request, int, int]]


class Engine:
    """Plans step N+1 while step N runs on the device (`asynchronous`), and reads sampled ids one step late.

    Requests with a grammar go along: step N+1 is planned and its logits are under way when step N's ids are read, which
    say what the grammars allow in step N+1.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        eos_token_ids: list[int],
        vocab_size: int,
        asynchronous: bool,
        grammars: Grammars | None = None,
    ) -> None:
        self.scheduler, self.runner = scheduler, runner
        self.eos_token_ids = frozenset(eos_token_ids)
        self.vocab_size = vocab_size
        self.asynchronous = asynchronous
        self.grammars = grammars
        self._launched: _Launched | None = None
        self._ended = 0.0
        self._arrivals = count()

    def load_grammars(self, tokenizer: str) -> None:
        """Requests may have grammars from now on; until then they are refused. tokenizer: JSON of a `tokenizers.Tokenizer`.
        Loaded at once, so that no request waits for it."""
        self.grammars = Grammars(tokenizer, self.vocab_size, sorted(self.eos_token_ids))
        try:
            self.grammars.load()
        except GrammarError as error:
            logger.warning("structured outputs will be refused: %s", error)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.requests) or self._launched is not None

    def add(self, added: AddRequest) -> None:
        """Queue a request. Raises InvalidRequest where it could never run."""
        self._validate(added)
        room = 1 if added.embedding else self.scheduler.config.max_model_len - len(added.prompt_token_ids)
        request = Request(
            id=added.id,
            prompt=added.prompt_token_ids,
            sampling=added.sampling,
            max_tokens=min(added.sampling.max_tokens or room, room),
            arrival=next(self._arrivals),
            priority=added.priority,
            cache_salt=added.cache_salt,
            output=list(added.output_token_ids),
            matcher=self._matcher(added),
            embedding=added.embedding,
        )
        self.scheduler.add(request)

    def abort(self, ids: list[str]) -> None:
        """Forget requests and free what they hold; unknown ids are ignored."""
        for request_id in ids:
            request = self.scheduler.requests.get(request_id)
            if request is not None:
                self.scheduler.finish(request)

    def step(self) -> list[TokenOutput]:
        """Schedule, run, postprocess."""
        scheduled = self.scheduler.schedule()
        launched = None
        outputs: list[TokenOutput] = []
        if scheduled is not None:
            plan, requests = scheduled
            scored = self._scored(plan)
            at = time.perf_counter()
            handle = self.runner.launch(plan, lambda: self._masks(requests, outputs))
            launched = _Launched(at, plan.num_tokens, handle, requests, scored)
        if not self.asynchronous:
            return outputs + self._postprocess(launched)
        outputs += self._postprocess(self._launched)
        self._launched = launched
        return outputs

    def _scored(self, plan: StepPlan) -> list[tuple[Request, int, int]]:
        rows = [row for row in plan.prefill if row.targets]
        by_slot = {request.slot: request for request in self.scheduler.running} if rows else {}
        return [(by_slot[row.slot], row.start, len(row.targets)) for row in rows]

    def stats(self) -> EngineStats:
        pool, scheduler = self.scheduler.pool, self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks_used=pool.num_used,
            kv_blocks_total=pool.num_blocks - 1,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            preemptions=scheduler.preemptions,
        )

    def _validate(self, added: AddRequest) -> None:
        limit = self.scheduler.config.max_model_len
        if added.id in self.scheduler.requests:
            raise InvalidRequest(f"request id {added.id!r} is already running")
        if not added.prompt_token_ids:
            raise InvalidRequest("the prompt is empty")
        if (added.embedding is None) != (self.runner.pooler is None):
            raise InvalidRequest(f"this engine makes {'text' if self.runner.pooler is None else 'embeddings'} only")
        if len(added.prompt_token_ids) + len(added.output_token_ids) >= limit + (added.embedding is not None):
            raise InvalidRequest(f"{len(added.prompt_token_ids)} prompt tokens leave no room in a context of {limit}")
        highest = max(added.prompt_token_ids)
        if highest >= self.vocab_size or min(added.prompt_token_ids) < 0:
            raise InvalidRequest(f"token ids must be in 0..{self.vocab_size - 1}; the prompt has {highest}")
        for name, ids in _named_ids(added.sampling):
            if any(not 0 <= token < self.vocab_size for token in ids):
                raise InvalidRequest(f"{name}: token ids must be in 0..{self.vocab_size - 1}")
        made = 0 if added.embedding else added.sampling.max_tokens or limit
        longest = min(limit, len(added.prompt_token_ids) + made)
        fitting = self.scheduler.longest
        if longest > fitting:
            raise InvalidRequest(
                f"{longest} tokens are more than the {fitting} that the cache blocks hold of one request"
            )

    def _matcher(self, added: AddRequest) -> Matcher | None:
        """Of the request's grammar, after the tokens made before."""
        grammar = added.sampling.grammar
        if grammar is None:
            return None
        if self.grammars is None:
            raise InvalidRequest("this engine has no tokenizer to follow a grammar with")
        try:
            matcher = self.grammars.matcher(grammar)
            matcher.take(added.output_token_ids)
        except GrammarError as error:
            raise InvalidRequest(f"{grammar.param}: {error}") from error
        return matcher

    def _masks(self, requests: list[Request], outputs: list[TokenOutput]) -> TokenMasks | None:
        """What the grammars allow in the step under way: reads the step before, whose outputs go to `outputs`."""
        previous, self._launched = self._launched, None
        outputs += self._postprocess(previous)
        rows = [
            (row, request, request.matcher)
            for row, request in enumerate(requests)
            if request.matcher is not None and request.state is not RequestState.FINISHED
        ]
        masks = TokenMasks.unset([row for row, *_ in rows], self.vocab_size)
        for (_, request, matcher), bits in zip(rows, masks.bits, strict=True):
            try:
                matcher.fill(bits)
            except GrammarError as error:
                bits.fill(-1)
                outputs.append(self._fail(request, error))
        return masks if rows else None

    def _fail(self, request: Request, error: GrammarError) -> TokenOutput:
        self.scheduler.finish(request)
        return TokenOutput(request.id, [], error=f"the grammar cannot be followed: {error}")

    def _wait(self, launched: _Launched) -> Sampled | None:
        """It began when it was launched, or when the step before had ended."""
        sampled = launched.handle.wait()
        began, self._ended = max(launched.at, self._ended), time.perf_counter()
        self.scheduler.pace.observe(launched.tokens, self._ended - began)
        return sampled

    def _postprocess(self, launched: _Launched | None) -> list[TokenOutput]:
        sampled = None if launched is None else self._wait(launched)
        if launched is not None and launched.handle.scores is not None:
            _keep_scores(launched.handle.scores, launched.scored)
        if launched is not None and launched.handle.vectors is not None:
            return self._vectors(launched.requests, launched.handle.vectors)
        if launched is None or sampled is None:
            return []
        outputs = []
        for row, (request, token) in enumerate(zip(launched.requests, sampled.ids.tolist(), strict=True)):
            if request.state is RequestState.FINISHED:
                continue
            self.scheduler.update(request, token)
            try:
                if request.matcher is not None:
                    request.matcher.take([token])
            except GrammarError as error:
                outputs.append(self._fail(request, error))
                continue
            reason, stopped_by = self._finish_reason(request, token)
            outputs.append(
                TokenOutput(
                    request.id,
                    [token],
                    reason,
                    stopped_by,
                    request.num_cached,
                    self._logprobs(request, sampled, row),
                    prompt_logprobs=_take_scores(request),
                )
            )
            if reason is not None:
                self.scheduler.finish(request)
        return outputs

    def _vectors(self, requests: list[Request], states: Tensor) -> list[TokenOutput]:
        """What the prompts of `requests` have come to, `states` [requests, hidden] being on the host."""
        assert self.runner.pooler is not None
        outputs = []
        for request, state in zip(requests, states.numpy(), strict=True):
            if request.state is not RequestState.FINISHED:
                assert request.embedding is not None
                vector = finished(state, request.embedding, self.runner.pooler.pooling)
                outputs.append(TokenOutput(request.id, [], "stop", None, request.num_cached, vector=vector))
                self.scheduler.finish(request)
        return outputs

    def _finish_reason(self, request: Request, token: int) -> tuple[FinishReason | None, int | None]:
        params = request.sampling
        if len(request.output) >= params.min_tokens:
            ended = not params.ignore_eos and token in self.eos_token_ids
            if ended or token in params.stop_token_ids:
                return "stop", token
        if request.matcher is not None and request.matcher.is_complete:
            return "stop", token if token in self.eos_token_ids else None
        if len(request.output) >= request.max_tokens:
            return "length", None
        return None, None

    @staticmethod
    def _logprobs(request: Request, sampled: Sampled, row: int) -> list[TokenLogprobs] | None:
        wanted = request.sampling.logprobs
        if wanted is None:
            return None
        assert sampled.logprobs is not None
        assert sampled.top_ids is not None
        assert sampled.top_logprobs is not None
        top_ids, top = sampled.top_ids[row, :wanted].tolist(), sampled.top_logprobs[row, :wanted].tolist()
        return [TokenLogprobs(sampled.logprobs[row].item(), top_ids, top)]


def _named_ids(sampling: SamplingParams) -> Iterator[tuple[str, Iterable[int]]]:
    """The parameters that name tokens."""
    yield "logit_bias", sampling.logit_bias
    yield "stop_token_ids", sampling.stop_token_ids
    yield "allowed_token_ids", sampling.allowed_token_ids or ()
    yield "bad_token_ids", chain.from_iterable(sampling.bad_token_ids)


def _keep_scores(scores: Scores, scored: list[tuple[Request, int, int]]) -> None:
    """A preempted request is computed anew from its beginning, and so are its scores."""
    row = 0
    for request, start, length in scored:
        if request.wants_scores:
            del request.prompt_scores[start:]
            request.prompt_scores += scores.rows(row, row + length, request.sampling.prompt_logprobs or 0)
        row += length


def _take_scores(request: Request) -> list[TokenLogprobs] | None:
    """The prompt's, with the first output."""
    if not request.wants_scores:
        return None
    request.scores_told = True
    scores, request.prompt_scores = request.prompt_scores, []
    return scores
