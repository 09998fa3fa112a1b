"""The tiers as processes of their own, on a real RabbitMQ and a real Postgres."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tests.cli.conftest import Start
from tests.cli.headrace import Running, run

pytestmark = pytest.mark.model
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def services(amqp_vhost_url: str, postgres_db_url: str) -> dict[str, str]:
    """Addresses as a deployment sets them."""
    return {"AMQP_URL": amqp_vhost_url, "DATABASE_URL": postgres_db_url}


def test_every_command_in_its_place(start: Start, services: dict[str, str]) -> None:
    migrated = run("migrate", **services)
    assert migrated.returncode == 0, migrated.stderr
    declared = run("topology", "--models", MODEL, **services)
    assert declared.returncode == 0, declared.stderr
    assert f"headrace.requests.{MODEL}.batch" in declared.stdout
    api = start("api", "--port", "0", "--processes", "2", **services)
    jobs = start("jobs", **services)
    worker = start("worker", **services)
    url = api.wait_for(r"listening on (http://\S+) \(2 processes\)")[1]
    jobs.wait_for("ready: dispatching")
    worker.wait_for(f"ready: serving {MODEL}")
    chat_over_http(url)
    publish_to_the_queue(services)
    run_a_batch(url)
    stop_all(worker, jobs, api)


def chat_over_http(url: str) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    with httpx.Client(base_url=url, timeout=60, transport=httpx.HTTPTransport(retries=5)) as client:
        answered = client.post("/v1/chat/completions", json=body)
    assert "Paris" in answered.json()["choices"][0]["message"]["content"], answered.text


def publish_to_the_queue(services: dict[str, str]) -> None:
    flags = ["--temperature", "0", "--max-tokens", "12"]
    one = run("publish", "--message", "What is the capital of France?", *flags, **services)
    assert one.returncode == 0, one.stderr
    assert "Paris" in one.stdout
    assert "completed: " in one.stderr
    spoken = run("publish", *flags, stdin="What is the capital of Japan?", **services)
    assert "Tokyo" in spoken.stdout, spoken.stderr
    messages = json.dumps([{"role": "user", "content": "What is the capital of Peru?"}])
    assert "Lima" in run("publish", "--messages", messages, *flags, **services).stdout
    assert run("publish", "--prompt", "The capital of France is", *flags, **services).stdout.strip()
    publish_a_file(flags, services)
    unserved = run("publish", "--model", "other", "--message", "hello", **services)
    assert unserved.returncode == 2
    assert "Is a worker for 'other' running?" in unserved.stderr


def publish_a_file(flags: list[str], services: dict[str, str]) -> None:
    jobs = [{"id": f"job-{n}", "prompt": "One two three", "sampling": {"max_tokens": n}} for n in (3, 4)]
    jobs.append({"id": "too-long", "prompt": "x", "sampling": {"max_tokens": 100_000}})
    done = run("publish", "--file", "-", *flags, stdin="\n".join(map(json.dumps, jobs)), **services)
    results = {result["job"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert "2 of 3 jobs completed" in done.stderr
    assert [results[f"job-{n}"]["usage"]["completion_tokens"] for n in (3, 4)] == [3, 4]
    assert results["job-3"]["choices"][0]["text"]
    assert results["too-long"]["error"]["code"] == "context_length_exceeded"


def run_a_batch(url: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    with httpx.Client(base_url=url, timeout=60) as client:
        sent = client.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", json.dumps(line).encode())}
        )
        request = {"input_file_id": sent.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=request).json()
        limit = time.monotonic() + 60
        while batch["status"] not in ("completed", "failed") and time.monotonic() < limit:
            time.sleep(0.1)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def stop_all(*commands: Running) -> None:
    for command in commands:
        assert command.stop() == 0, command.log.read_text()
        assert command.log.read_text().endswith("stopped\n")
        assert "Traceback" not in command.log.read_text()


def test_serve_on_the_same_services(start: Start, services: dict[str, str]) -> None:
    served = start("serve", "--port", "0", **services)
    chat_over_http(served.wait_for(r"ready: \S+ at (http://[\d.:]+)/v1 \(RabbitMQ\)")[1])
    stop_all(served)


def test_a_file_with_a_bad_line_publishes_nothing(services: dict[str, str]) -> None:
    good, bad = json.dumps({"prompt": "x"}), json.dumps({"prompt": "x", "sampling": {"max_tokens": 0}})
    ended = run("publish", "--file", "-", stdin=f"{good}\n\n{bad}\n", **services)
    assert ended.returncode == 2
    assert ended.stderr.startswith("headrace: line 3: this is no job: ")
    assert ended.stdout == ""
