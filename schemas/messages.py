"""Wire messages: what the api tier, the workers and direct publishers say to each other over the broker.

Every message is one JSON object. Decoding validates types and ranges; a `msgspec.ValidationError` names the offending
field by its JSON path. Unknown fields are ignored, so that older readers survive newer writers.

    requests queue   Job        one request, durable, acknowledged after its Result is confirmed
    results queue    Result     the one terminal message of a job, durable
    reply queue      Frame      what one engine step produced for one reader, transient
    places fanout    Places     when refused requests were told to come back, api to api, transient
    control fanout   Control    cancel, resume answers, a call for announcements
    status fanout    Status     what a worker serves, its limits, load and measured rate
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

JobClass = Literal["interactive", "batch"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
ToolChoice = Literal["none", "auto", "required"]
Outcome = Literal["completed", "failed", "cancelled", "expired"]

MAX_ID_LENGTH = 128
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_GRAMMAR_LENGTH = 100_000
MAX_BAD_WORDS = 128
MAX_PRIORITY = 2**31 - 1
MAX_TOOLS = 128
MAX_TEMPLATE_LENGTH = 65_536
MAX_INPUTS = 2048

Identifier = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]
EmbeddingInput = Annotated[str, Meta(min_length=1)] | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]


class Grammar(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an output must match: `value` is a JSON Schema (json), a regular expression over the whole output (regex), a
    JSON list of strings (choice) or a Lark or GBNF grammar (grammar). `param` is the request's parameter that it came
    from, for errors to name."""

    kind: Literal["json", "regex", "choice", "grammar"]
    value: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_LENGTH)]
    param: str = "structured_outputs"


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop; defaults are OpenAI's, extensions are vLLM's. What is None of `temperature`,
    `top_p`, `top_k`, `min_p` and `repetition_penalty` is what the model's own generation config says, or else 1, 1, 0, 0, 1.

    `seed` makes the draw at each position a pure function of (seed, position); the publisher sets it when the caller
    did not, so that a redelivered job continues as it began. `logprobs` counts the alternatives reported beside the
    sampled token; None reports nothing. `max_tokens` None means up to the model's context, or its own default. An
    output with a `grammar` ends where nothing may follow, be it shorter than `min_tokens`. `prompt_logprobs` is what
    `logprobs` is, for the tokens of the prompt; such a prompt is computed anew, whatever of it is cached. Of `best_of`
    outputs the `n` with the highest mean log probability are kept. `bad_token_ids` are sequences that an output never
    completes; a worker makes them of `bad_words`. With `allowed_token_ids` no other token is sampled.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=64)] = []
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=1024)] = []
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    logit_bias: dict[int, Annotated[float, Meta(ge=-100.0, le=100.0)]] = {}
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    bad_words: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_BAD_WORDS)] = []
    bad_token_ids: list[Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]] = []
    allowed_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | None = None

    @property
    def num_outputs(self) -> int:
        """Outputs that are made, of which `n` are kept."""
        return self.best_of or self.n


class EmbeddingParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the vectors of a job with `inputs` are made. `dimensions` keeps so many of a vector's first values, and makes
    its length 1 again; `normalize` None does what the model's own files say."""

    dimensions: Annotated[int, Meta(ge=1)] | None = None
    normalize: bool | None = None


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request for one model. Exactly one of `messages`, `prompt`, `prompt_token_ids`, `inputs` is set.

    `id` is the key of the job from door to ledger: a second job with the same id changes nothing. `reply_to` names the
    reader's queue; without it nothing is streamed back and only the Result remains. With `stream` the reader gets Deltas
    as they are made; without, the whole output comes in the terminal Result of the last Frame. `deadline` is in Unix
    seconds: a job past it ends as expired. `store_output` keeps the output in the results store; without it only
    outcome and usage are kept.

    `messages` become a prompt by the model's chat template, or by a `chat_template` of the job's own where the worker
    takes one; `template_kwargs` are its further variables.

    `tools` are function tools in OpenAI's form, for jobs with `messages`: the chat template gets them, unless
    `tool_choice` is none. `tool_name` is the one function that has to be called, where `tool_choice` is required.

    `add_special_tokens` None adds the tokenizer's own to a `prompt`, and none to `messages`, whose template has them.
    `truncate_prompt_tokens` keeps that many tokens of the prompt's end, -1 as many as leave room for the output. With
    `echo` each output begins with the prompt's text (of `messages`: with the last one's, if it is the assistant's), with
    `return_token_ids` it brings the prompt's ids. Of one class, jobs with a lower `priority` run first. Prompts share
    cached prefixes only with those of the same `cache_salt`.

    `inputs`, texts or token ids, are for a model that makes embeddings: a vector of each comes, in their order, in the
    Result's choices. Of an input `truncate_prompt_tokens` keeps the beginning, and the special tokens around it.
    """

    id: Identifier
    model: Identifier
    job_class: JobClass = "interactive"
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    prompt: str | None = None
    prompt_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | None = None
    inputs: Annotated[list[EmbeddingInput], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    embedding: EmbeddingParams | None = None
    template_kwargs: dict[str, Any] = {}
    chat_template: Annotated[str, Meta(min_length=1, max_length=MAX_TEMPLATE_LENGTH)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    echo: bool = False
    return_token_ids: bool = False
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    cache_salt: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stream: bool = False
    reply_to: str | None = None
    store_output: bool = False
    owner: str = ""
    created: float = field(default_factory=time.time)
    deadline: float | None = None

    def __post_init__(self) -> None:
        given = (self.messages, self.prompt, self.prompt_token_ids, self.inputs)
        if sum(one is not None for one in given) != 1:
            raise ValueError("give exactly one of messages, prompt, prompt_token_ids, inputs")
        if self.stream and self.inputs is not None:
            raise ValueError("embeddings are not streamed")
        if self.sampling.num_outputs < self.sampling.n:
            raise ValueError("best_of is less than n")
        if self.stream and self.sampling.num_outputs > self.sampling.n:
            raise ValueError("which outputs are best is known at the end only: best_of cannot be streamed")


class TokenLogprob(Struct, frozen=True, array_like=True):
    """Natural log probability of one token, its text and its raw bytes; None of a prompt's first token."""

    token: str
    logprob: float | None
    token_bytes: list[int]


class PositionLogprobs(Struct, frozen=True, array_like=True):
    """The sampled token's log probability and the most likely alternatives, best first."""

    sampled: TokenLogprob
    top: list[TokenLogprob]


class ScoredToken(Struct, frozen=True, array_like=True):
    """A token at one position of a prompt, its text, natural log probability, and rank among all, from 1."""

    token_id: int
    token: str
    logprob: float
    rank: int


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts of one job over all its choices; the prompt counts once. Completion tokens include reasoning."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class ErrorInfo(Struct, frozen=True, kw_only=True):
    """An error in OpenAI's shape, with the HTTP status that it answers with."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    status: int = 400


class ToolCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a function, or in a Delta the next piece of one: `id` and `name` come with its first piece only, and
    `arguments` is the JSON text that follows what came before. `index` numbers the calls of a choice."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one choice of one job.

    `offset` is how many tokens of this choice came before. `text` may lag behind the tokens: bytes of an unfinished
    character and the possible beginning of a stop string are held back. What a model says in its own syntax comes apart
    from the text: `reasoning` before its answer, and `tool_calls`. The first delta of a choice, with offset 0, says how
    many tokens the prompt has, and which, where the job asks to `return_token_ids`. So it does with `prompt_logprobs`: of
    each token but the first, and then of the likeliest at its position. What is echoed has its part in `logprobs`.
    """

    job: str
    epoch: int
    offset: int
    choice: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    token_ids: list[int] = []
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[list[ScoredToken]] | None = None


class Choice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished output of a job. Of the prompt it has what the first Delta has. Of a job with `inputs` it is one
    input's: no text, but its `embedding`, base64 of little-endian float32."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[PositionLogprobs] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[list[ScoredToken]] | None = None
    embedding: bytes | None = None


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The one terminal message of a job: to the results queue, and to the reader in its last Frame.

    In the results queue `choices` is empty unless the job asked for `store_output`; in a Frame it is empty for a
    streamed job. Times are Unix seconds.
    """

    job: str
    model: str
    outcome: Outcome
    job_class: JobClass = "interactive"
    owner: str = ""
    epoch: int = 0
    usage: Usage = field(default_factory=Usage)
    choices: list[Choice] = []
    error: ErrorInfo | None = None
    created: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    worker: str = ""


class ResumeQuery(Struct, frozen=True, kw_only=True):
    """A worker that holds a redelivered streamed job asks the reader what it has shown. Answered by Control `resume`."""

    job: str
    epoch: int


class TextAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answers a Control `tokenize`: the prompt's token ids and the text of each, and the text of them all together; or
    an error. `question` is the asked job's id."""

    question: str
    token_ids: list[int] = []
    tokens: list[str] = []
    text: str = ""
    error: ErrorInfo | None = None


class Frame(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one engine step produced for one reader. Deltas come before the Results that end their jobs."""

    worker: str
    deltas: list[Delta] = []
    results: list[Result] = []
    queries: list[ResumeQuery] = []
    answers: list[TextAnswer] = []


class Control(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A word to every worker: `cancel` a job; `resume` says which token ids of each choice its reader has shown, in the
    highest epoch that it knows; `announce` asks for a Status now.

    A `resume` answers a ResumeQuery, or comes by itself where a reader misses something: the worker that has the job
    sends all that follows, to `reply_to` if given, and the Result once more if the job has ended.

    `tokenize` asks `worker`, and no other, what the prompt of the job `question` is as token ids and as text. The job is
    not run, and has no Result; its `reply_to` gets a TextAnswer.
    """

    kind: Literal["cancel", "resume", "announce", "tokenize"]
    job: str = ""
    epoch: int = 0
    shown: list[list[int]] = []
    reply_to: str | None = None
    worker: str = ""
    question: Job | None = None


class Status(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's announcement, every two seconds and on request; `leaving` says that it stops serving.

    Rates are tokens per second, measured over the last ten seconds of work; `queued_tokens` counts prompt and possible
    output tokens accepted but not finished. `interactive_waiting` counts the jobs of that class without a token yet.
    A model with `embedding_dimensions` makes embeddings of that size, and nothing else; its rate is that of its input.
    """

    worker: str
    model: str
    max_model_len: int
    vocab_size: int
    created: int = 0
    running: int = 0
    waiting: int = 0
    interactive_waiting: int = 0
    max_running: int = 0
    queued_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    preemptions: int = 0
    tokens_per_second: float = 0.0
    has_chat_template: bool = True
    sampling_defaults: dict[str, Any] = {}
    embedding_dimensions: int = 0
    leaving: bool = False
    sent: float = field(default_factory=time.time)


class Place(Struct, frozen=True, array_like=True):
    """A place in a queue for `jobs` jobs of a refused request, which its `key` recognises when it comes again. `due` is
    in Unix seconds."""

    key: str
    due: float
    jobs: int = 1


class Places(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one api process has promised for a model since it last said so, and which promises were called in there."""

    api: str
    model: str
    promised: list[Place] = []
    taken: list[Place] = []


M = TypeVar("M", bound=Struct)

_encoder = msgspec.json.Encoder()


def encode(message: Struct) -> bytes:
    """The message as compact UTF-8 JSON."""
    return _encoder.encode(message)


def decode(kind: type[M], body: bytes) -> M:
    """Parse and validate one message. Raises `msgspec.ValidationError` or `msgspec.DecodeError`, each naming the cause."""
    return msgspec.json.decode(body, type=kind)
