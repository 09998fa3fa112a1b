from __future__ import annotations

import pytest

from bench.services import RabbitMQ, ServiceMissing
from tests.conftest import found


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_a_missing_service_fails_in_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    def missing() -> None:
        raise ServiceMissing("rabbitmq-server is not installed")

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(RabbitMQ, "_find", staticmethod(missing))
    with pytest.raises(BaseException, match="not installed") as caught:
        found(RabbitMQ)
    assert type(caught.value).__name__ == outcome
