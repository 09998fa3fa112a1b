"""What comes of a job's text: which parsers read it, and one reader for each choice."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.messages import FinishReason, Job
from workers.front.tools.reasoning import PromptEnd, ReasoningStyle, reasoning
from workers.front.tools.registry import ToolParser
from workers.front.tools.sink import CallIds, Functions, Piece, Sink
from workers.front.tools.source import Scan, Source


@dataclass(frozen=True, slots=True)
class OutputSyntax:
    """How the outputs of one job are read."""

    job: str
    reasoning: ReasoningStyle | None = None
    tools: ToolParser | None = None
    functions: Functions = field(default_factory=Functions)
    parallel: bool = True
    prompt_end: PromptEnd = "none"

    @property
    def specials(self) -> frozenset[str]:
        """Special tokens that are part of the syntax, and so of the text."""
        return frozenset() if self.tools is None else self.tools.specials

    def parser(self, choice: int) -> OutputParser:
        ids = CallIds(self.job, choice)
        if self.tools is not None:
            ids = CallIds(self.job, choice, self.tools.id_prefix, self.tools.id_length)
        return OutputParser(self, Sink(self.functions, ids, parallel=self.parallel))


def functions_of(job: Job) -> Functions:
    """The job's tools by name; of malformed ones there is nothing to know."""
    schemas = {}
    for tool in job.tools:
        function = tool.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            schemas[function["name"]] = properties if isinstance(properties, dict) else {}
    return Functions(schemas)


class OutputParser:
    """Reads the text of one choice. Its state follows from the text so far, however that was cut."""

    def __init__(self, syntax: OutputSyntax, sink: Sink) -> None:
        self.reasoning_tokens = 0
        self._syntax = syntax
        self._sink = sink
        self._source = Source()
        self._scan = self._read()
        next(self._scan)

    @property
    def done(self) -> bool:
        """No more is wanted: the one call that was allowed is complete."""
        return self._sink.done

    @property
    def whole(self) -> Piece:
        """All reasoning and calls so far."""
        return self._sink.whole

    def feed(self, text: str) -> None:
        """Take the text that a token brought."""
        if text and not self.done:
            self._source.feed(text)
            next(self._scan)
        self.reasoning_tokens += self._sink.in_reasoning

    def end(self) -> None:
        """The text has ended."""
        self._source.end()
        next(self._scan, None)
        self._sink.end()

    def take(self) -> Piece:
        """What may be shown since the last time."""
        return self._sink.take()

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """An answer that stopped by itself with calls in it stopped for them."""
        return "tool_calls" if reason == "stop" and self._sink.has_calls else reason

    def _read(self) -> Scan[None]:
        if self._syntax.reasoning is not None:
            yield from reasoning(self._source, self._sink, self._syntax.reasoning, self._syntax.prompt_end)
        if self._syntax.tools is not None:
            yield from self._syntax.tools.read(self._source, self._sink)
        yield from self._source.until(self._sink.text)
