"""One choice of a running job: its tokens, its text, where it ends, and what of it has been shown.

All of its state follows from the token ids: `rebuild` on the tokens that a reader has shown continues where another
worker left off, to the character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.messages import Choice, Delta, FinishReason, PositionLogprobs, SamplingParams, ScoredToken, TokenLogprob
from workers.front.detokenize import Vocabulary
from workers.front.stop import StopStrings
from workers.front.text import Prompt
from workers.front.tools.output import OutputParser
from workers.front.tools.sink import Piece, since
from workers.protocol import TokenLogprobs, TokenOutput


class StopTokens:
    """Which tokens end a sequence by themselves."""

    def __init__(self, sampling: SamplingParams, eos_token_ids: Sequence[int]) -> None:
        self._ids = frozenset(sampling.stop_token_ids) | frozenset(() if sampling.ignore_eos else eos_token_ids)
        self._min_tokens = sampling.min_tokens

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these output tokens ended the sequence."""
        return bool(tokens) and tokens[-1] in self._ids and len(tokens) >= self._min_tokens


class ChoiceText:
    """Text of one choice as far as it may be shown: whole characters, and nothing that could begin a stop string."""

    __slots__ = ("_detokenizer", "_hides_stop_token", "_min_tokens", "_stops", "count")

    def __init__(self, vocabulary: Vocabulary, sampling: SamplingParams, prompt: Prompt) -> None:
        self._detokenizer = vocabulary.detokenizer(
            prompt.token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            keep=frozenset() if prompt.output is None else prompt.output.specials,
        )
        self._stops = StopStrings(sampling.stop, include=sampling.include_stop_str_in_output) if sampling.stop else None
        self._hides_stop_token = not sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self.count = 0

    @property
    def stopped(self) -> bool:
        """A stop string has ended the text; feed no more."""
        return self._stops is not None and self._stops.matched is not None

    def step(self, token_id: int) -> str:
        """Text that may be shown after this token."""
        self.count += 1
        text = self._detokenizer.step(token_id)
        return text if self._stops is None else self._stops.feed(text, check=self.count > self._min_tokens)

    def step_stop_token(self, token_id: int) -> str:
        """The same for the token that ended the sequence: its text is hidden, unless the caller wants it."""
        if not self._hides_stop_token:
            return self.step(token_id)
        self.count += 1
        return ""

    def flush(self) -> str:
        """What was held back, now that the sequence has ended."""
        rest = self._detokenizer.flush()
        if self._stops is None:
            return rest
        shown = self._stops.feed(rest, check=self.count > self._min_tokens)
        return shown if self.stopped else shown + self._stops.flush()


@dataclass(frozen=True, slots=True)
class ChoiceContext:
    """What all choices of a job share."""

    vocabulary: Vocabulary
    sampling: SamplingParams
    prompt: Prompt
    stop_tokens: StopTokens
    return_token_ids: bool = False

    def new_text(self) -> ChoiceText:
        return ChoiceText(self.vocabulary, self.sampling, self.prompt)


class ChoiceRun:
    """One choice while it runs. `finish_reason` is set once it has ended, be it here or in the engine."""

    __slots__ = (
        "_context",
        "_parser",
        "_parts",
        "_rebuilt",
        "_text",
        "cached_tokens",
        "finish_reason",
        "index",
        "logprobs",
        "prompt_scores",
        "tokens",
    )

    def __init__(self, index: int, context: ChoiceContext) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.prompt_scores: list[TokenLogprobs] = []
        self.cached_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self._context = context
        self._text = context.new_text()
        output = context.prompt.output
        self._parser = None if output is None else output.parser(index)
        self._parts: list[str] = []
        self._rebuilt = 0

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._parts)

    @property
    def whole(self) -> Piece:
        """All that was shown so far."""
        whole = Piece() if self._parser is None else self._parser.whole
        return Piece(self.text, whole.reasoning, whole.tool_calls)

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._parser is None else self._parser.reasoning_tokens

    def compact(self) -> None:
        """Keep the text in one piece: nothing is added any more."""
        self._parts = [self.text]

    def take(self, output: TokenOutput) -> Piece:
        """Append what the engine made; returns what may now be shown."""
        if output.token_ids and self.cached_tokens is None:
            self.cached_tokens = output.cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt_scores = output.prompt_logprobs
        before = len(self.tokens)
        piece = self._advance(output.token_ids, output.finish_reason, output.stopped_by)
        if output.logprobs:
            taken = zip(self.tokens[before:], output.logprobs, strict=False)
            self.logprobs += [position_logprobs(self._context.vocabulary, *position) for position in taken]
        return piece

    def rebuild(self, shown: Sequence[int]) -> None:
        """Take over tokens made and shown elsewhere. They may already end the choice."""
        stopped_by = shown[-1] if self._context.stop_tokens.ends(shown) else None
        finish: FinishReason | None = "stop" if stopped_by is not None else None
        if finish is None and len(shown) >= self._context.prompt.max_tokens:
            finish = "length"
        self._advance(shown, finish, stopped_by)
        self._rebuilt = len(self.tokens)

    def delta(self, job: str, epoch: int, offset: int, piece: Piece) -> Delta:
        """The tokens from `offset` on, with what came of them; the first one also tells of the prompt."""
        prompt = self._context.prompt
        return Delta(
            job=job,
            epoch=epoch,
            offset=offset,
            choice=self.index,
            text=piece.text if offset else prompt.echo + piece.text,
            reasoning=piece.reasoning,
            tool_calls=piece.tool_calls,
            token_ids=self.tokens[offset:],
            logprobs=self._logprobs_from(offset),
            finish_reason=self.finish_reason,
            prompt_tokens=0 if offset else len(prompt.token_ids),
            prompt_token_ids=None if offset else self._shown_prompt,
            prompt_logprobs=None if offset else self._shown_scores,
        )

    def _logprobs_from(self, offset: int) -> list[PositionLogprobs] | None:
        if not self.logprobs or offset < self._rebuilt:
            return None
        made = self.logprobs[offset - self._rebuilt :]
        return made if offset else self._echoed_logprobs + made

    @property
    def _echoed_logprobs(self) -> list[PositionLogprobs]:
        """Of the prompt, where its text stands in front of the output and its tokens are accounted for."""
        context = self._context
        if not (context.prompt.echo and self.prompt_scores):
            return []
        first, *rest = context.prompt.token_ids
        unknown = PositionLogprobs(_token_logprob(context.vocabulary, first, None), [])
        scored = zip(rest, self.prompt_scores, strict=True)
        return [unknown, *(position_logprobs(context.vocabulary, *position) for position in scored)]

    @property
    def _shown_scores(self) -> list[list[ScoredToken]] | None:
        if self._context.sampling.prompt_logprobs is None:
            return None
        rest = self._context.prompt.token_ids[1:]
        scored = zip(rest, self.prompt_scores, strict=False)
        return [scored_tokens(self._context.vocabulary, *position) for position in scored]

    @property
    def _shown_prompt(self) -> list[int] | None:
        return self._context.prompt.token_ids if self._context.return_token_ids else None

    def since(self, count: int) -> Piece:
        """What was shown after the first `count` tokens were."""
        earlier = ChoiceRun(self.index, self._context)
        earlier.rebuild(self.tokens[:count])
        return since(self.whole, earlier.whole)

    def finished(self) -> Choice:
        """The whole output. Without log probabilities where another worker made some of them."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if len(self.logprobs) == len(self.tokens) and self.logprobs else None
        whole = self.whole
        return Choice(
            index=self.index,
            text=self._context.prompt.echo + whole.text,
            reasoning=whole.reasoning,
            tool_calls=whole.tool_calls,
            token_ids=self.tokens,
            finish_reason=self.finish_reason,
            logprobs=None if logprobs is None else self._echoed_logprobs + logprobs,
            prompt_token_ids=self._shown_prompt,
            prompt_logprobs=self._shown_scores,
        )

    def _advance(self, token_ids: Sequence[int], finish: FinishReason | None, stopped_by: int | None) -> Piece:
        text = ""
        last = len(token_ids) - 1 if stopped_by is not None else -1
        for position, token_id in enumerate(token_ids):
            self.tokens.append(token_id)
            new = self._text.step_stop_token(token_id) if position == last else self._text.step(token_id)
            text += new
            if self._parser is not None:
                self._parser.feed(new)
            if self._text.stopped or (self._parser is not None and self._parser.done):
                finish = "stop"
                break
        rest = "" if finish is None or self._text.stopped else self._text.flush()
        self.finish_reason = finish
        piece = Piece(text + rest) if self._parser is None else self._parsed(self._parser, rest)
        self._parts.append(piece.text)
        return piece

    def _parsed(self, parser: OutputParser, rest: str) -> Piece:
        """What the parser has read, `rest` being the end of the text where it has ended."""
        if self.finish_reason is not None:
            parser.feed(rest)
            parser.end()
            self.finish_reason = parser.finish_reason(self.finish_reason)
        return parser.take()


def position_logprobs(vocabulary: Vocabulary, token_id: int, logprobs: TokenLogprobs) -> PositionLogprobs:
    """Token ids of one position's log probabilities as text and bytes."""
    top = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    return PositionLogprobs(
        sampled=_token_logprob(vocabulary, token_id, logprobs.sampled),
        top=[_token_logprob(vocabulary, other, value) for other, value in top],
    )


def scored_tokens(vocabulary: Vocabulary, token_id: int, logprobs: TokenLogprobs) -> list[ScoredToken]:
    """The prompt's own token first, then the likeliest ones."""
    top = zip(logprobs.top_ids, logprobs.top_logprobs, range(1, len(logprobs.top_ids) + 1), strict=True)
    given = (token_id, logprobs.sampled, logprobs.rank)
    return [
        ScoredToken(other, vocabulary.token_bytes(other).decode("utf-8", "replace"), value, rank)
        for other, value, rank in (given, *(one for one in top if one[0] != token_id))
    ]


def _token_logprob(vocabulary: Vocabulary, token_id: int, logprob: float | None) -> TokenLogprob:
    spelled = vocabulary.token_bytes(token_id)
    return TokenLogprob(spelled.decode("utf-8", "replace"), logprob, list(spelled))
