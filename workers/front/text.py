"""The prompt of a job as token ids, checked against the model's limits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.messages import Grammar, Job, SamplingParams
from workers.front.detokenize import Vocabulary
from workers.front.grammar_check import GrammarCheck
from workers.front.inputs import InputTokenizer
from workers.front.limits import Limits, check_ids, invalid
from workers.front.template import ChatTemplate, flatten, own_fault
from workers.front.tools.model_syntax import ModelSyntax
from workers.front.tools.output import OutputSyntax
from workers.grammar import GrammarError, tokenizer_json

LONG_PROMPT = 4_000
"""Characters from which a prompt is tokenized in a thread: about a millisecond, a tenth of an engine step."""
TAIL_TOKENS = 16
"""Of a prompt, decoded to see whether the template has begun the reasoning."""
OWN_TEMPLATE_SECONDS = 5.0
"""For a template that came with its job."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to run, and the number of tokens that may follow it."""

    token_ids: list[int]
    max_tokens: int
    output: OutputSyntax | None = None
    """How the answer is read; None: it is all text."""
    grammar: Grammar | None = None
    """What the answer has to match where the model has to call a tool."""
    echo: str = ""
    """Text in front of each output."""
    bad_token_ids: list[list[int]] = field(default_factory=list)
    """Sequences that no output completes."""


class TextProcessor:
    """Chat template and tokenizer of one model. `tokenizer` is a transformers `PreTrainedTokenizerBase`. With
    `trust_request_templates` a job may bring a template of its own."""

    def __init__(
        self, tokenizer: Any, syntax: ModelSyntax | None = None, *, trust_request_templates: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._syntax = syntax or ModelSyntax.of(tokenizer)
        self._template = ChatTemplate(tokenizer, self._syntax, trust_requests=trust_request_templates)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # tokenizer.json may ask for truncation, which would shorten prompts silently.
            self._backend.no_truncation()
            self._backend.no_padding()
        self.vocabulary = Vocabulary(tokenizer)
        self.inputs = InputTokenizer(tokenizer)
        self._grammars = GrammarCheck(tokenizer)

    @property
    def tokenizer_json(self) -> str:
        """For an engine that follows grammars."""
        return tokenizer_json(self._tokenizer)

    @property
    def has_chat_template(self) -> bool:
        return self._template.is_there

    async def prepare(self, job: Job, limits: Limits) -> Prompt:
        """Tokenize and check. Raises InvalidJobError with the error that the job's publisher is told."""
        _check_token_ids(job.sampling, limits)
        _check_tools(job, self._syntax)
        if job.sampling.grammar is not None:
            await self._check_grammar(job.sampling.grammar, limits)
        prompt = _fit(job, await self.tokenize(job, limits), limits)
        bad = self._bad_token_ids(job.sampling)
        check_ids([token_id for sequence in bad for token_id in sequence], limits.vocab_size, "bad_token_ids")
        return await self._with_output(
            job, limits, replace(prompt, echo=self._echo(job, prompt.token_ids), bad_token_ids=bad)
        )

    async def _with_output(self, job: Job, limits: Limits, prompt: Prompt) -> Prompt:
        if job.messages is None or not self._syntax.concerns(job):
            return prompt
        tail = str(self._tokenizer.decode(prompt.token_ids[-TAIL_TOKENS:], skip_special_tokens=False))
        grammar = self._syntax.grammar(job, tail)
        if grammar is not None:
            await self._check_grammar(grammar, limits)
        return replace(prompt, output=self._syntax.output(job, tail), grammar=grammar)

    async def tokenize(self, job: Job, limits: Limits) -> list[int]:
        """The prompt's token ids, those that are left of it. Raises InvalidJobError."""
        if job.prompt_token_ids is not None:
            check_ids(job.prompt_token_ids, limits.vocab_size, "prompt")
            return _truncated(job, list(job.prompt_token_ids), limits)
        if job.chat_template is not None:
            return _truncated(job, await self._tokenize_by_own_template(job), limits)
        if _size(job) < LONG_PROMPT:
            return _truncated(job, self._tokenize(job), limits)
        return _truncated(job, await asyncio.to_thread(self._tokenize, job), limits)

    async def _tokenize_by_own_template(self, job: Job) -> list[int]:
        """Who waits is answered in time; a thread that loops cannot be stopped."""
        try:
            async with asyncio.timeout(OWN_TEMPLATE_SECONDS):
                return await asyncio.to_thread(self._tokenize, job)
        except TimeoutError:
            raise own_fault(f"it ran for more than {OWN_TEMPLATE_SECONDS:g} s") from None

    def _echo(self, job: Job, token_ids: list[int]) -> str:
        if not job.echo:
            return ""
        if job.messages is not None:
            last = flatten(job.messages[-1], len(job.messages) - 1)
            return str(last.get("content") or "") if last.get("role") == "assistant" else ""
        if job.prompt is not None and job.truncate_prompt_tokens is None:
            return job.prompt
        return self.vocabulary.text(token_ids, skip_special_tokens=job.sampling.skip_special_tokens)

    def _bad_token_ids(self, sampling: SamplingParams) -> list[list[int]]:
        """Bad words as tokens, at the beginning of a text and behind a space."""
        spelled = {
            tuple(self._encode(space + word.lstrip(" "), special=False)): None
            for word in sampling.bad_words
            for space in ("", " ")
        }
        return [*sampling.bad_token_ids, *(list(sequence) for sequence in spelled if sequence)]

    async def _check_grammar(self, grammar: Grammar, limits: Limits) -> None:
        try:
            await self._grammars.check(grammar, limits.vocab_size)
        except GrammarError as error:
            code = "invalid_json_schema" if grammar.kind == "json" else "invalid_grammar"
            raise invalid(f"Invalid '{grammar.param}': {error}", param=grammar.param, code=code) from error

    def _tokenize(self, job: Job) -> list[int]:
        if job.messages is None:
            return self._encode(job.prompt or "", special=job.add_special_tokens is not False)
        # A template writes its own special tokens.
        return self._encode(self._template.render(job), special=bool(job.add_special_tokens))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        return list(self._tokenizer.encode(text, add_special_tokens=special))


def _size(job: Job) -> int:
    """Characters of the prompt, roughly."""
    if job.messages is None:
        return len(job.prompt or "")
    return sum(len(str(message.get("content") or "")) for message in job.messages) + 200 * len(job.tools)


def _check_tools(job: Job, syntax: ModelSyntax) -> None:
    if (reason := syntax.refusal(job)) is not None:
        raise invalid(
            reason, param="tool_choice" if job.tool_choice == "required" else "tools", code="tools_unsupported"
        )


def _check_token_ids(sampling: SamplingParams, limits: Limits) -> None:
    check_ids(sampling.stop_token_ids, limits.vocab_size, "stop_token_ids")
    check_ids(sampling.logit_bias, limits.vocab_size, "logit_bias")
    check_ids(sampling.allowed_token_ids, limits.vocab_size, "allowed_token_ids")


def _truncated(job: Job, token_ids: list[int], limits: Limits) -> list[int]:
    """The end of the prompt, where the job asks for that."""
    keep = job.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if keep < 0:
        keep = max(0, limits.max_model_len - (job.sampling.max_tokens or 1))
    return token_ids[-keep:] if keep else []


def _fit(job: Job, token_ids: list[int], limits: Limits) -> Prompt:
    """Check the prompt's length and settle `max_tokens`: what the job asks for, else all the room that is left."""
    param = "messages" if job.messages is not None else "prompt"
    if not token_ids:
        raise invalid("the prompt is empty", param=param)
    count, room = len(token_ids), limits.max_model_len - len(token_ids)
    wanted = job.sampling.max_tokens
    if room < (wanted or 1):
        asked = f"{count} prompt tokens" + (
            f" and max_tokens {wanted}" if wanted else ", which leaves no room for output"
        )
        message = f"The model's context holds {limits.max_model_len} tokens; this request has {asked}."
        raise invalid(message, param=param, code="context_length_exceeded")
    if job.sampling.min_tokens > (wanted or room):
        raise invalid(
            f"min_tokens {job.sampling.min_tokens} is more than max_tokens {wanted or room}", param="min_tokens"
        )
    return Prompt(token_ids, wanted or room)
