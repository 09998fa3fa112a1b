"""Questions about text: what a prompt is as token ids, and token ids as text. Only workers have the tokenizer.

A question goes to one live worker of the model over the control fanout, not through the request queue: it is answered
beside the jobs, at once, and nothing is kept of it. Where no answer comes another worker is asked, once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

import msgspec

from api.errors import RATE_LIMIT, SERVER, ApiError, broker_unavailable
from broker.base import Broker, BrokerError, Message
from schemas.messages import Control, Job, TextAnswer, encode
from schemas.topology import CONTROL

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""A worker answers in milliseconds, for a long prompt in some tens of them: one that does not is dead, or stuck."""
ATTEMPTS = 2
MAX_OPEN = 512


class Questions:
    """The questions of one api process that have no answer yet. `reader` names its reply queue; `patience` in seconds."""

    def __init__(self, broker: Broker, reader: str, *, patience: float = ANSWER_SECONDS) -> None:
        self._broker = broker
        self._reader = reader
        self._patience = patience
        self._open: dict[str, asyncio.Future[TextAnswer]] = {}

    async def ask(self, job: Job, workers: Sequence[str]) -> TextAnswer:
        """What the prompt of `job` is, by one of `workers`. Raises ApiError: what the worker finds wrong, 429 where too
        much is asked, 503 where nobody answers."""
        if len(self._open) >= MAX_OPEN:
            raise ApiError(429, "Too many questions about text at once.", RATE_LIMIT, code="overloaded", retry_after=1)
        question = msgspec.structs.replace(job, reply_to=self._reader)
        for worker in random.sample(workers, min(ATTEMPTS, len(workers))):
            try:
                return _checked(await self._ask(question, worker))
            except TimeoutError:
                log.warning("worker %s did not answer question %s", worker, job.id)
        message = "No worker of this model answers. Try again in a moment."
        raise ApiError(503, message, SERVER, code="no_answer", retry_after=2)

    def settle(self, answer: TextAnswer) -> None:
        """An answer has come."""
        waiting = self._open.get(answer.question)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _ask(self, question: Job, worker: str) -> TextAnswer:
        answer: asyncio.Future[TextAnswer] = asyncio.get_running_loop().create_future()
        self._open[question.id] = answer
        control = Control(kind="tokenize", worker=worker, question=question)
        try:
            async with asyncio.timeout(self._patience):
                await self._broker.publish(CONTROL, "", Message(encode(control)), confirm=False)
                return await answer
        except BrokerError as error:
            log.warning("question %s not sent: %s", question.id, error)
            raise broker_unavailable() from None
        finally:
            del self._open[question.id]


def _checked(answer: TextAnswer) -> TextAnswer:
    if answer.error is not None:
        raise ApiError.from_info(answer.error)
    return answer
