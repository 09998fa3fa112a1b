"""One request in the engine: its tokens, its progress and its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from schemas.messages import EmbeddingParams, SamplingParams
from workers.grammar import Matcher
from workers.protocol import TokenLogprobs


class RequestState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """A request of one choice.

    Progress is one number: `num_computed` counts the tokens whose keys and values are in the cache (or are being written by
    a step under way) and catches up with `num_tokens`. `num_pending` counts tokens sampled by steps that the host has
    not read yet: they exist on the device only. A request for an `embedding` counts its vector as one token, which is
    never taken into `output`. `tables`, `num_blocks`, `num_dropped`, `block_hashes` and `num_registered` are kept by
    BlockTables: blocks by group of layers, the length of each group's table, and how many at the beginning of each are
    given back. `matcher` has taken all of `output`, whatever becomes of slot and blocks.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    arrival: int
    priority: int = 0
    cache_salt: str = ""
    output: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    embedding: EmbeddingParams | None = None
    state: RequestState = RequestState.WAITING
    slot: int = -1
    num_computed: int = 0
    num_pending: int = 0
    num_cached: int = 0
    tables: list[list[int]] = field(default_factory=list)
    num_blocks: int = 0
    num_dropped: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    last_token_on_device: bool = False
    prompt_scores: list[TokenLogprobs] = field(default_factory=list)
    scores_told: bool = False

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, those which only the device knows included."""
        return len(self.prompt) + len(self.output) + self.num_pending

    @property
    def num_known(self) -> int:
        """Prompt and output tokens whose ids the host knows."""
        return len(self.prompt) + len(self.output)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: who goes first, and, from the other end, who is preempted first."""
        return (self.priority, self.arrival)

    @property
    def wants_more(self) -> bool:
        """Whether another token may be sampled, counting those under way."""
        return len(self.output) + self.num_pending < self.max_tokens

    @property
    def wants_scores(self) -> bool:
        """Whether log probabilities of the prompt are still to be computed, or computed again."""
        return self.sampling.prompt_logprobs is not None and not self.scores_told

    def targets(self, start: int, stop: int) -> list[int]:
        """What follows each of the tokens start..stop-1 in the prompt, as far as it goes."""
        return self.prompt[start + 1 : stop + 1] if self.wants_scores else []

    def known_tokens(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start..stop-1, all known to the host."""
        split = len(self.prompt)
        if stop <= split:
            return self.prompt[start:stop]
        if start >= split:
            return self.output[start - split : stop - split]
        return self.prompt[start:] + self.output[: stop - split]
