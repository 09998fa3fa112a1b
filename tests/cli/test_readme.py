"""The README's examples, run as they stand against a live service; only the address is replaced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.headrace import Running, environment

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def example(heading: str, number: int = 0) -> tuple[str, str]:
    """Language and text of a heading's code block. Fails where there is none."""
    section = README.split(f"\n### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    language, text = re.findall(r"^```(bash|python)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]
    return language, text


def run(heading: str, number: int = 0, *, address: str = ADDRESS, folder: Path = ROOT, **variables: str) -> str:
    """Run an example; its output. Fails where it does."""
    language, text = example(heading, number)
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable, "-"],
        input=text.replace(ADDRESS, address),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env=environment(PATH=path, **variables),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def live_amqp(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ on which a service with the demo model runs."""
    folder = tmp_path_factory.mktemp("amqp")
    running = Running(folder / "log", "serve", "--port", "0", "--data-dir", str(folder), AMQP_URL=amqp_url)
    try:
        running.wait_for("ready: ")
        yield amqp_url
        assert running.stop() == 0, running.log.read_text()
    finally:
        running.kill()


def test_each_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    for section in README.split("\n### ")[1:]:
        heading = section.split("\n")[0]
        blocks = len(re.findall(r"^```(?:bash|python)$", section.split("\n## ")[0], re.MULTILINE))
        assert here.count(f'run("{heading}"') == blocks, heading


def test_structured_outputs(live_url: str) -> None:
    river = json.loads(run("Structured outputs", address=live_url))
    assert list(river) == ["river", "length_km"]
    assert river["length_km"] <= 9999


def test_curl(live_url: str) -> None:
    answer = json.loads(run("curl", address=live_url))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_curl_streams(live_url: str) -> None:
    events = [line[6:] for line in run("curl", 1, address=live_url).splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] > 0


def test_openai_client(live_url: str, tmp_path: Path) -> None:
    assert len(run("OpenAI's client", address=live_url, folder=tmp_path)) > 40


def test_batch(live_url: str, tmp_path: Path) -> None:
    lines = run("A batch", address=live_url, folder=tmp_path).splitlines()
    assert {line.split(" ")[0] for line in lines} >= {"France", "Japan", "Kenya"}


def test_publish_from_the_shell(live_amqp: str) -> None:
    assert run("Straight to the queue", AMQP_URL=live_amqp).strip()
    results = [json.loads(line) for line in run("Straight to the queue", 1, AMQP_URL=live_amqp).splitlines()]
    assert [result["outcome"] for result in results] == ["completed", "completed"]
    assert all(result["choices"][0]["text"] for result in results)


def test_publish_from_python(live_amqp: str) -> None:
    assert run("Straight to the queue", 2, AMQP_URL=live_amqp).endswith("\ncompleted")


def test_in_process() -> None:
    assert len(run("In your own process").splitlines()) == 2


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/queue.md"])
def test_links_lead_somewhere(page: str) -> None:
    source = ROOT / page
    targets = [target for target in re.findall(r"\]\(([^)#]+)", source.read_text()) if "://" not in target]
    assert [target for target in targets if not (source.parent / target).exists()] == []


def test_named_targets_and_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)) <= targets
    from cli.main import COMMANDS

    assert set(re.findall(r"headrace ([a-z]+)\b(?! serves)", README)) <= set(COMMANDS)
