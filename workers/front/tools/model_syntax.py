"""The syntax of one model's answers: which parsers read them, by settings or by what the chat template shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from schemas.messages import Grammar, Job
from workers.front.tools.enforce import call_grammar
from workers.front.tools.messages import Message, in_words
from workers.front.tools.output import OutputSyntax, functions_of
from workers.front.tools.reasoning import ReasoningStyle, prompt_end
from workers.front.tools.registry import (
    TOOL_PARSERS,
    ReasoningParserName,
    ToolParser,
    ToolParserName,
    reasoning_style,
    tool_parser,
)


def wants_tools(job: Job) -> bool:
    """Whether the model is told of tools. Where none may be called it is not: so it calls none."""
    return bool(job.tools) and job.tool_choice != "none"


def _malformed(job: Job) -> str | None:
    """What is wrong with a job that did not come over HTTP."""
    if not job.tools:
        return "tool_choice can only be required where there are tools" if job.tool_choice == "required" else None
    if job.messages is None:
        return "tools go with messages, not with a prompt"
    functions = [tool.get("function") for tool in job.tools]
    for index, function in enumerate(functions):
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return f"tools[{index}].function.name should be a string"
        if not isinstance(function.get("parameters", {}), dict):
            return f"tools[{index}].function.parameters should be a JSON Schema, which is an object"
    if job.tool_name is None:
        return None
    if job.tool_choice != "required":
        return "tool_name goes with the tool_choice required"
    return None if job.tool_name in functions_of(job).by_name else "tool_name names none of the tools"


@dataclass(frozen=True, slots=True)
class ModelSyntax:
    """`template_has_tools`: the chat template writes tools itself. `marks` are the tokens that stand for a mark."""

    tools: ToolParser | None
    reasoning: ReasoningStyle | None
    template_has_tools: bool
    marks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, tools: ToolParserName = "auto", reasoning: ReasoningParserName = "auto") -> ModelSyntax:
        """For a transformers tokenizer, whose chat template may be several by name."""
        template = tokenizer.chat_template or ""
        if isinstance(template, dict):
            template = "\n".join(template.values())
        marks = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        return cls(tool_parser(tools, template), reasoning_style(reasoning, template), "tools" in template, marks)

    def refusal(self, job: Job) -> str | None:
        """Why the job's tools cannot be served: by anybody, or by this model."""
        if (reason := _malformed(job)) is not None or not wants_tools(job):
            return reason
        if self.tools is None:
            return "This model's calls cannot be read: its worker has no tool parser (--tool-parser)."
        if job.tool_choice == "required" and self.tools.form is None:
            return "In this model's syntax calls cannot be enforced: tool_choice can be auto or none."
        if not self.template_has_tools and self.tools is not TOOL_PARSERS["hermes"]:
            return "This model's chat template takes no tools; its worker can tell them in words with --tool-parser hermes."
        return None

    def conversation(self, messages: list[Message], tools: list[dict[str, Any]]) -> tuple[list[Message], Any]:
        """Messages and tools as the template takes them."""
        return (messages, tools) if self.template_has_tools else (in_words(messages, tools), None)

    def concerns(self, job: Job) -> bool:
        """Whether the job's answer is more than text."""
        return self.reasoning is not None or wants_tools(job)

    def grammar(self, job: Job, prompt_tail: str) -> Grammar | None:
        """What an answer has to match where a call is required."""
        if self.tools is None or self.tools.form is None or not wants_tools(job) or job.tool_choice != "required":
            return None
        return call_grammar(job, self.tools.form, self.marks, self.reasoning, prompt_end(prompt_tail))

    def output(self, job: Job, prompt_tail: str) -> OutputSyntax:
        """How the answers to the job are read."""
        return OutputSyntax(
            job.id,
            self.reasoning,
            self.tools if wants_tools(job) else None,
            functions_of(job),
            job.parallel_tool_calls,
            prompt_end(prompt_tail),
        )
