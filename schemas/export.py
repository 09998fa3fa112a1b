"""JSON Schemas of the wire messages, for publishers in other languages.

python -m schemas.export            writes schemas/json/*.json
python -m schemas.export --check    exits with 1 and names the files that are not current
"""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any

import msgspec

from schemas.messages import Control, Frame, Job, Result, Status

FOLDER = Path(__file__).parent / "json"
MESSAGES = (Job, Frame, Result, Control, Status)
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """File name to content, one a message."""
    return {f"{kind.__name__.lower()}.json": _schema(kind) for kind in MESSAGES}


def outdated(folder: Path = FOLDER) -> list[str]:
    """Names of the files in `folder` that are missing, differ from the messages or belong to none."""
    wanted = schemas()
    present = {path.name: path.read_text() for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def write(folder: Path = FOLDER) -> None:
    """Write every schema."""
    folder.mkdir(exist_ok=True)
    for name, content in schemas().items():
        (folder / name).write_text(content)


def _schema(kind: type[msgspec.Struct]) -> str:
    schema = {"$schema": DIALECT} | _unindented(msgspec.json.schema(kind))
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


def _unindented(node: Any) -> Any:
    """The schema with its descriptions, which are docstrings, freed of their indentation."""
    if isinstance(node, list):
        return [_unindented(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: cleandoc(value) if key == "description" and isinstance(value, str) else _unindented(value)
        for key, value in node.items()
    }


def main(arguments: list[str]) -> int:
    """Write, or with --check compare."""
    if "--check" not in arguments:
        write()
        return 0
    names = outdated()
    if names:
        print(f"not current: {', '.join(names)}; run python -m schemas.export", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
