"""Messages to text: the model's chat template, or the request's own.

Templates run in the sandbox of transformers: no attribute that begins with an underscore, nothing that changes an object.
It bounds neither time nor memory, so templates of requests are for callers who are trusted with both.
"""

from __future__ import annotations

from typing import Any

import jinja2

from schemas.messages import Job
from workers.front.limits import InvalidJobError, invalid
from workers.front.tools.messages import decoded_calls
from workers.front.tools.model_syntax import ModelSyntax, wants_tools

KWARGS_TAKEN = frozenset(
    {
        "conversation",
        "chat_template",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)
"""Arguments of `apply_chat_template` that are not the caller's: they change what comes back, or the template itself."""


class ChatTemplate:
    """That of `tokenizer`. With `trust_requests` a job may bring its own."""

    def __init__(self, tokenizer: Any, syntax: ModelSyntax, *, trust_requests: bool) -> None:
        self._tokenizer = tokenizer
        self._syntax = syntax
        self._trust_requests = trust_requests

    @property
    def is_there(self) -> bool:
        """Whether the model has one."""
        return bool(self._tokenizer.chat_template)

    def render(self, job: Job) -> str:
        """The prompt of a job with messages. Raises InvalidJobError."""
        self._check(job)
        assert job.messages is not None
        arguments = {"add_generation_prompt": True, **job.template_kwargs, "tokenize": False}
        messages = [flatten(message, index) for index, message in enumerate(job.messages)]
        if wants_tools(job):
            messages, arguments["tools"] = self._syntax.conversation(messages, job.tools)
        if job.chat_template is None:
            return self._render(messages, arguments)
        return self._render_own(messages, arguments | {"chat_template": job.chat_template})

    def _check(self, job: Job) -> None:
        if job.chat_template is not None and not self._trust_requests:
            message = "this worker takes no chat templates from requests (--trust-request-chat-template)"
            raise invalid(message, param="chat_template", code="unsupported_parameter")
        if job.chat_template is None and not self.is_there:
            message = "This model has no chat template; use /v1/completions, or give the prompt as text or token ids."
            raise invalid(message, param="messages", code="no_chat_template")
        if taken := sorted(KWARGS_TAKEN.intersection(job.template_kwargs)):
            raise invalid(f"chat template argument {taken[0]!r} cannot be set by a request", param="template_kwargs")

    def _render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, **arguments))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise invalid(f"The messages do not fit the chat template: {error}", param="messages") from error

    def _render_own(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, **arguments))
        except Exception as error:  # the code is the caller's, and so is whatever it raises
            raise own_fault(f"{type(error).__name__}: {error}") from error


def own_fault(reason: str) -> InvalidJobError:
    """The error for a job whose own template does not work."""
    return invalid(f"Invalid 'chat_template': {reason}", param="chat_template", code="invalid_chat_template")


def flatten(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message whose content parts are one text, and whose calls' arguments are objects: so templates take them."""
    try:
        message = decoded_calls(message)
    except ValueError as error:
        raise invalid(f"messages[{index}].{error}", param=f"messages[{index}].tool_calls") from error
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            raise invalid("this model takes text content only", param=f"messages[{index}].content")
        texts.append(text)
    return {**message, "content": "\n".join(texts)}
