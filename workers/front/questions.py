"""Answers what a prompt is as token ids, and token ids as text, without running anything."""

from __future__ import annotations

import asyncio
import logging

from schemas.messages import ErrorInfo, Job, TextAnswer
from workers.front.frames import FrameSender
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import TextProcessor

logger = logging.getLogger(__name__)

MAX_OPEN = 64
"""Questions under way at once: what comes beyond them is refused, since jobs share this process."""

_INTERNAL = ErrorInfo(message="internal error", type="server_error", status=500)


class QuestionDesk:
    """Answers go to the reader that the question names, in its frames."""

    def __init__(self, text: TextProcessor, frames: FrameSender) -> None:
        self._text = text
        self._frames = frames
        self._open: set[asyncio.Task[None]] = set()

    def ask(self, question: Job, limits: Limits) -> None:
        """Answer, soon and beside whatever else goes on."""
        if question.reply_to is None:
            logger.warning("question %s names nobody to answer", question.id)
        elif len(self._open) >= MAX_OPEN:
            self._frames.post_answer(question.reply_to, TextAnswer(question=question.id, error=_busy()))
        else:
            task = asyncio.create_task(self._answer(question, question.reply_to, limits))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        """Answer nothing more; who asked asks another worker."""
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _answer(self, question: Job, reader: str, limits: Limits) -> None:
        try:
            token_ids = await self._text.tokenize(question, limits)
            vocabulary = self._text.vocabulary
            answer = TextAnswer(
                question=question.id,
                token_ids=token_ids,
                tokens=vocabulary.token_texts(token_ids),
                text=vocabulary.text(token_ids, skip_special_tokens=question.sampling.skip_special_tokens),
            )
        except InvalidJobError as error:
            answer = TextAnswer(question=question.id, error=error.error)
        except Exception:
            logger.exception("question %s could not be answered", question.id)
            answer = TextAnswer(question=question.id, error=_INTERNAL)
        self._frames.post_answer(reader, answer)


def _busy() -> ErrorInfo:
    message = "Too many questions about text at once. Try again in a moment."
    return ErrorInfo(message=message, type="rate_limit_error", code="overloaded", status=429)
