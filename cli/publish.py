"""`headrace publish`: one message straight to the queue, the answer to the terminal."""

from __future__ import annotations

import asyncio
import secrets
import sys
import uuid

from api.errors import ApiError
from api.queue_client import QueueClient
from broker.base import BrokerError
from cli.errors import StartError
from cli.parts import amqp_broker, connected
from cli.settings import PublishSettings
from schemas.messages import Delta, Job, Result, SamplingParams


def publish(settings: PublishSettings) -> None:
    """Publish and print; exit code 1 where the job did not complete. Raises StartError."""
    message = settings.message or sys.stdin.read()
    if not message.strip():
        raise StartError("nothing to say: give --message or write it to standard input")
    result = asyncio.run(_publish(settings, message))
    if result.outcome != "completed":
        reason = result.error.message if result.error else result.outcome
        print(f"headrace: the job ended as {result.outcome}: {reason}", file=sys.stderr)
        sys.exit(1)
    usage = result.usage
    print(f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens", file=sys.stderr)


async def _publish(settings: PublishSettings, message: str) -> Result:
    job = Job(
        id=f"job-{uuid.uuid4().hex}",
        model=settings.model,
        messages=[{"role": "user", "content": message}],
        sampling=SamplingParams(
            temperature=settings.temperature, max_tokens=settings.max_tokens, seed=secrets.randbelow(2**31)
        ),
        stream=True,
        store_output=True,
    )
    async with connected(amqp_broker(settings, "headrace-publish")) as broker:
        client = QueueClient(broker)
        await client.start()
        try:
            return await _print(client, job)
        except (BrokerError, ApiError) as error:
            raise StartError(f"cannot publish: {error}; is a worker for {settings.model!r} running?") from error
        finally:
            await client.close()


async def _print(client: QueueClient, job: Job) -> Result:
    async with client.submit(job) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
            elif isinstance(event, Result):
                print()
                return event
    raise AssertionError("a stream ends in a Result")
