"""Asking readers what they have shown of a redelivered, streamed job."""

from __future__ import annotations

import asyncio
import logging

from broker.base import BrokerError
from schemas.messages import Control, ResumeQuery
from workers.front.frames import FrameSender

logger = logging.getLogger(__name__)

RESUME_TIMEOUT = 2.0
"""Seconds to wait for a reader's answer; one that does not answer is gone."""

Shown = list[list[int]]


class ResumeDesk:
    """Matches Control `resume` answers to the queries sent."""

    def __init__(self, frames: FrameSender, *, timeout: float = RESUME_TIMEOUT) -> None:
        self._frames = frames
        self._timeout = timeout
        self._waiting: dict[tuple[str, int], asyncio.Future[Shown | None]] = {}

    async def ask(self, reader: str, job: str, epoch: int) -> Shown | None:
        """Token ids shown of each choice (trailing choices may be missing); None without an answer."""
        answer: asyncio.Future[Shown | None] = asyncio.get_running_loop().create_future()
        self._waiting[job, epoch] = answer
        try:
            async with asyncio.timeout(self._timeout):
                await self._frames.send_query(reader, ResumeQuery(job=job, epoch=epoch))
                return await answer
        except (TimeoutError, BrokerError) as error:
            logger.info("reader %s did not say what it has shown of job %s: %s", reader, job, error or "time is up")
            return None
        finally:
            self._waiting.pop((job, epoch), None)

    def answer(self, control: Control) -> bool:
        """Whether this answers a query of ours."""
        waiting = self._waiting.get((control.job, control.epoch))
        if waiting is None or waiting.done():
            return False
        waiting.set_result(control.shown)
        return True

    def give_up(self, job: str) -> None:
        """The job has ended: what its reader has shown no longer matters."""
        for (waiting_job, _), waiting in self._waiting.items():
            if waiting_job == job and not waiting.done():
                waiting.set_result(None)
