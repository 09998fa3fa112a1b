"""The `headrace` command."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from cli import settings as declared
from cli.errors import PartEnded, StartError

TALKATIVE = ("aiormq", "alembic", "httpx", "uvicorn")
EXIT_FAILED = 1
EXIT_CANNOT_START = 2


class Command(NamedTuple):
    """A command's settings, and the module whose `run(settings)` carries it out: imported only when asked for, so that
    no command waits for torch which does not need it."""

    settings: type[declared.Settings]
    module: str
    summary: str


COMMANDS = {
    "serve": Command(declared.ServeSettings, "cli.serve", "everything in one: HTTP, jobs and a worker"),
    "api": Command(declared.ApiCommandSettings, "cli.api", "the HTTP tier"),
    "worker": Command(declared.WorkerCommandSettings, "cli.worker", "a worker: takes requests, runs the engine"),
    "jobs": Command(declared.JobsSettings, "cli.jobs", "dispatcher and recorder"),
    "migrate": Command(declared.MigrateSettings, "cli.migrate", "bring the database's schema up to date"),
    "topology": Command(declared.TopologySettings, "cli.topology", "declare exchanges and queues on RabbitMQ"),
    "keys": Command(declared.KeysSettings, "cli.keys", "API keys: create | list | revoke"),
    "dead": Command(declared.DeadSettings, "cli.dead", "dead letters: list | show | replay | drop"),
    "models": Command(declared.ModelsSettings, "cli.models", "which models are served, and by whose code"),
    "inspect": Command(declared.InspectSettings, "cli.inspect_model", "what a model is and needs, without its weights"),
    "publish": Command(declared.PublishSettings, "cli.publish", "publish straight to the queue and print the answer"),
}


def usage() -> str:
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    lines.append(f"  {'bench':<10} measurements: headrace bench cpu | offline")
    return "\n".join(
        [
            "usage: headrace COMMAND [settings]",
            "       headrace COMMAND --help | --help | --version",
            "",
            "commands:",
            *lines,
            "",
            "Each setting is a flag and a variable, --max-running and HEADRACE_MAX_RUNNING; the flag wins.",
            "`headrace COMMAND --help` lists a command's settings with their defaults.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Ends the process with one line on stderr and 2 where it cannot start, 1 where it fails later."""
    given = sys.argv[1:] if arguments is None else arguments
    match given:
        case []:
            print(usage(), file=sys.stderr)
            sys.exit(EXIT_CANNOT_START)
        case ["-h" | "--help", *_]:
            print(usage())
        case ["--version", *_]:
            print(f"headrace {version('headrace')}")
        case ["bench", *rest]:
            import_module("bench.main").main(rest)
        case [name, *rest] if name in COMMANDS:
            run(name, rest)
        case [name, *_]:
            fail(f"no command {name!r}; `headrace --help` lists them")


def run(name: str, arguments: list[str]) -> None:
    """Carry out one command of COMMANDS."""
    command = COMMANDS[name]
    settings = parse(name, command.settings, arguments)
    configure_logging(settings)
    try:
        import_module(command.module).run(settings)
    except StartError as error:
        fail(str(error))
    except PartEnded as error:
        fail(str(error), EXIT_FAILED)


def parse(name: str, kind: type[declared.Settings], arguments: list[str]) -> declared.Settings:
    """Settings from flags, then variables, then defaults."""
    try:
        return CliApp.run(kind, cli_args=arguments)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        fail(f"{flag}: {first['msg']}, not {first['input']!r}; see `headrace {name} --help`")
    except SettingsError as error:
        fail(f"{str(error).removeprefix('error parsing CLI: ')}; see `headrace {name} --help`")


def configure_logging(settings: declared.Settings) -> None:
    """To stderr. Libraries that tell of each of their steps are heard with debug only."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if settings.log_level != "debug":
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)


def fail(message: str, code: int = EXIT_CANNOT_START) -> NoReturn:
    """One line on stderr, and the end."""
    print(f"headrace: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
