"""The `headrace` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp

from cli import settings as declared
from cli.errors import StartError

USAGE = """usage: headrace COMMAND [--help] [settings]

commands:
  serve      everything in one command: HTTP, jobs and a worker (embedded broker and SQLite by default)
  api        the HTTP tier
  worker     a worker: consumes requests, runs the engine
  jobs       dispatcher and recorder
  migrate    bring the database's schema up to date
  topology   declare exchanges and queues on RabbitMQ
  publish    publish one message straight to the queue and print the answer
  bench      measurements: headrace bench cpu | offline

Each setting is a flag or a variable HEADRACE_<NAME>; `headrace COMMAND --help` lists them with their defaults.
"""


def _serve(settings: Any) -> None:
    from cli.serve import serve

    serve(settings)


def _api(settings: Any) -> None:
    from cli.api import run_api

    run_api(settings)


def _worker(settings: Any) -> None:
    from cli.worker import run

    run(settings)


def _jobs(settings: Any) -> None:
    from cli.jobs import run_jobs

    run_jobs(settings)


def _migrate(settings: Any) -> None:
    from cli.admin import migrate

    migrate(settings)


def _topology(settings: Any) -> None:
    from cli.admin import declare_topology

    declare_topology(settings)


def _publish(settings: Any) -> None:
    from cli.publish import publish

    publish(settings)


COMMANDS: dict[str, tuple[type[declared.Settings], Callable[[Any], None]]] = {
    "serve": (declared.ServeSettings, _serve),
    "api": (declared.ApiCommandSettings, _api),
    "worker": (declared.WorkerCommandSettings, _worker),
    "jobs": (declared.JobsSettings, _jobs),
    "migrate": (declared.MigrateSettings, _migrate),
    "topology": (declared.TopologySettings, _topology),
    "publish": (declared.PublishSettings, _publish),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; ends the process with 0, or with 2 and one line on stderr where it cannot start."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(f"headrace {version('headrace')}")
        return
    if given[0] == "bench":
        from bench.main import main as bench

        bench(given[1:])
        return
    if given[0] not in COMMANDS:
        fail(f"no command {given[0]!r}; `headrace --help` lists them")
    kind, run = COMMANDS[given[0]]
    parsed = parse(given[0], kind, given[1:])
    logging.basicConfig(
        level=parsed.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        run(parsed)
    except StartError as error:
        fail(str(error))


def parse(name: str, kind: type[declared.Settings], arguments: list[str]) -> declared.Settings:
    """Settings from flags, then variables, then defaults."""
    try:
        return CliApp.run(kind, cli_args=_named(name, kind, arguments))
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        fail(f"{flag}: {first['msg']}; see `headrace {name} --help`")


def _named(name: str, kind: type[declared.Settings], arguments: list[str]) -> list[str]:
    kind.model_config["cli_prog_name"] = f"headrace {name}"
    return arguments


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"headrace: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
