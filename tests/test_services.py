from __future__ import annotations

import os
import pwd

import pytest

from bench.services import Postgres, RabbitMQ, ServiceMissing
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


@pytest.mark.parametrize(("known", "user"), [({"postgres", "nobody"}, "postgres"), ({"nobody"}, "nobody")])
def test_root_starts_postgres_as_somebody_else(monkeypatch: pytest.MonkeyPatch, known: set[str], user: str) -> None:
    def getpwnam(name: str) -> pwd.struct_passwd:
        if name not in known:
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", 1234, 5678, "", "/", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *_: None)
    server = found(Postgres)
    assert server._user is not None
    assert server._user.pw_name == user
    assert server._as_user() == {"user": 1234, "group": 5678, "extra_groups": []}
    server.remove()
