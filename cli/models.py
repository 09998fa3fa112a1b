"""`headrace models`: which models are served, and by whose code."""

from __future__ import annotations

import json
from dataclasses import asdict

from cli.lifecycle import say
from cli.settings import ModelsSettings
from workers.model.families.registry import FAMILIES
from workers.model.support import Architecture, architectures, summary

ROADS = {"native": "family", "backend": "transformers", "none": "not served"}


def run(settings: ModelsSettings) -> None:
    """Print the table."""
    known = architectures()
    if settings.format == "json-lines":
        for one in known:
            print(json.dumps(asdict(one)))
    elif settings.format == "markdown":
        print(markdown(known))
    else:
        for one in known:
            print(f"{one.name:<44}{ROADS[one.road]:<14}{one.family or one.reason}".rstrip())
        say(summary(known))


def markdown(known: list[Architecture]) -> str:
    """The tables of docs/models.md."""
    lines = ["### Families", "", "| family | models | architectures |", "|---|---|---|"]
    for family in FAMILIES:
        names = ", ".join(f"`{name}`" for name in family.architectures)
        lines.append(f"| {family.name} | {family.description} | {names} |")
    lines += ["", "### Architectures of transformers", "", f"{summary(known)}.", ""]
    lines += ["| architecture | by | |", "|---|---|---|"]
    for one in known:
        reason = (one.family or one.reason).replace("|", "\\|")
        lines.append(f"| `{one.name}` | {ROADS[one.road]} | {reason} |")
    return "\n".join(lines)
