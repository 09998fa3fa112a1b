"""Help and versions, and starts that fail: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic_settings.sources.types import _CliPositionalArg

from cli.main import COMMANDS, main
from tests.cli.headrace import run

NOBODY = "amqp://guest:guest@127.0.0.1:1/"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_each_setting_with_its_variable(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: headrace {name}" in shown
    for field, info in COMMANDS[name].settings.model_fields.items():
        if _CliPositionalArg in info.metadata:
            assert field.upper() in shown
            continue
        assert f"--{field.replace('_', '-')}" in shown
        assert f"HEADRACE_{field.upper()}" in shown.replace("\n", "").replace(" ", "")


def test_help_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in [*COMMANDS, "bench"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"headrace {version('headrace')}\n"


def test_bench_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    assert "cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no command 'nonsense'"),
        (["serve", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["serve", "--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (["serve", "--device", "tpu"], "--device: String should match"),
        (["worker"], "no broker: give --amqp-url or set AMQP_URL"),
        (["worker", "--amqp-url", "http://127.0.0.1/"], "does not begin with amqp://"),
        (["publish", "--amqp-url", NOBODY, "--message", "a", "--prompt", "b"], "give one of --message and --prompt"),
        (["publish", "--amqp-url", NOBODY, "--messages", "{"], "--messages is no JSON"),
        (["publish", "--amqp-url", NOBODY, "--file", "/nonexistent"], "cannot read /nonexistent"),
        (["migrate", "--database-url", "mysql://127.0.0.1/x"], "check --database-url"),
        (["migrate", "--revision", "nonsense"], "Can't locate revision identified by 'nonsense'"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith("headrace: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker", "--amqp-url", NOBODY], "cannot use the broker"),
        (["topology", "--amqp-url", NOBODY], "cannot use the broker"),
        (["jobs", "--amqp-url", NOBODY, "--database-url", "sqlite:////nonexistent/x.db"], "there is no file"),
        (["serve", "--port", "0", "--database-url", "sqlite:////nonexistent/x.db"], "x.db cannot be written"),
        (["api", "--port", "0", "--amqp-url", NOBODY, "--database-url", "postgresql://127.0.0.1:1/x"], "the database"),
        (["serve", "--port", "0", "--model", "/nonexistent.gguf"], "no model at '/nonexistent.gguf'"),
        (["serve", "--port", "0", "--data-dir", "/proc/nowhere"], "check --database-url"),
    ],
)
def test_a_service_that_cannot_be_reached_is_one_line_too(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = run(*arguments, HEADRACE_DATA_DIR=str(tmp_path), HEADRACE_LOG_LEVEL="error")
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("headrace: ")
    assert said in last
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("serve", "--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path))
    assert ended.returncode == 2
    assert "Address already in use; try another --port\n" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_database_without_schema_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    ended = run("api", "--port", "0", "--amqp-url", NOBODY, "--database-url", f"sqlite:///{tmp_path}/empty.db")
    assert ended.returncode == 2
    assert "no such table" in ended.stderr
    assert "headrace migrate" in ended.stderr


def test_migrate_makes_and_drops_the_schema(tmp_path: Path) -> None:
    up = run("migrate", "--data-dir", str(tmp_path / "new"))
    assert (up.returncode, up.stdout) == (0, "the schema is at head\n")
    assert (tmp_path / "new" / "headrace.db").is_file()
    down = run("migrate", "--down", "--data-dir", str(tmp_path / "new"))
    assert (down.returncode, down.stdout) == (0, "the schema is at base\n")
