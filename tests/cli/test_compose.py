"""compose.yaml against the command line that it starts. No container engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import COMMANDS, parse

ROOT = Path(__file__).parents[2]
OURS = ("migrate", "api", "jobs", "worker", "worker-gpu")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services, their anchors merged."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def variables(service: dict[str, Any]) -> dict[str, str]:
    """A service's environment with the defaults of its ${NAME:-default}."""
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in service["environment"].items()}


def test_all_services_are_there(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"rabbitmq", "postgres", *OURS}
    assert services["rabbitmq"]["image"] == "rabbitmq:4"
    assert [name for name, service in services.items() if service.get("profiles")] == ["worker-gpu"]


@pytest.mark.parametrize("name", OURS)
def test_each_command_takes_its_flags_and_variables(
    name: str, services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *flags = services[name]["command"]
    fields = {f"HEADRACE_{field.upper()}" for field in COMMANDS[command].settings.model_fields}
    given = variables(services[name])
    assert {variable for variable in given if variable.startswith("HEADRACE_")} <= fields
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = parse(command, COMMANDS[command].settings, flags)
    assert getattr(settings, "amqp_url", "amqp://").startswith("amqp://")
    assert getattr(settings, "database_url", "postgresql://").startswith("postgresql://")
    drain = getattr(settings, "drain_seconds", 0)
    assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain


def test_start_is_ordered_by_conditions_that_can_come_true(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for {needed}"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert needed == "migrate"
    for name in ("api", "jobs"):
        assert set(services[name]["depends_on"]) == {"rabbitmq", "migrate"}
    assert set(services["migrate"]["depends_on"]) == {"postgres"}
    assert set(services["worker"]["depends_on"]) == {"rabbitmq"}


def test_what_answers_is_checked(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "healthcheck" in service} == {
        *("rabbitmq", "postgres", "api", "worker", "worker-gpu")
    }


@pytest.mark.model
@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_health_checks_pass_on_a_live_service(
    name: str, services: dict[str, dict[str, Any]], live_url: str
) -> None:
    kind, program, flag, code = services[name]["healthcheck"]["test"]
    assert (kind, program, flag) == ("CMD", "python", "-c")
    there = re.sub(r"http://[\w.]+:8000", live_url, code)
    assert subprocess.run([sys.executable, flag, there], timeout=30, check=False).returncode == 0
    nowhere = re.sub(r"http://[\w.]+:8000", "http://127.0.0.1:1", code)
    assert subprocess.run([sys.executable, flag, nowhere], timeout=30, check=False, capture_output=True).returncode == 1


def test_ports_are_open_to_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_is_made_by_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = set(re.findall(r"RUN make ([a-z-]+)", (ROOT / "Dockerfile").read_text()))
    assert steps == {"torch", "install"}
    assert steps <= targets
