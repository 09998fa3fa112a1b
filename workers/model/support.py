"""Which architectures are served, and by whose code: families by their registry, all else by what a sweep has found.

`swept.jsonl` is what `headrace bench models` wrote: each causal language model of transformers' registry, small and random.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.model.families.registry import FAMILIES

SWEPT = Path(__file__).with_name("swept.jsonl")
Road = Literal["native", "backend", "none"]
_BEST: tuple[Road, ...] = ("native", "backend", "none")


@dataclass(frozen=True, slots=True)
class Architecture:
    """road: native, by a family; backend, by transformers' code; none, for the reason given. swept: whether it was tried
    with the installed transformers. pictures: it takes pictures beside text, and was given none."""

    name: str
    road: Road
    family: str = ""
    reason: str = ""
    swept: bool = True
    pictures: bool = False


def architectures(swept: Path = SWEPT) -> list[Architecture]:
    """All that are known, by name. One that several model types share is served where one of them is."""
    families = {name: family.name for family in FAMILIES for name in family.architectures}
    found: dict[str, Architecture] = {}
    for line in swept.read_text().splitlines():
        result = json.loads(line)
        name, road = result["architecture"], result["road"]
        family = families.get(name, "") if road == "native" else ""
        known = Architecture(name, road, family, result.get("reason", ""), pictures=result["pictures"])
        found[name] = min(found.get(name, known), known, key=lambda one: _BEST.index(one.road))
    for name in families.keys() - found.keys():
        found[name] = Architecture(name, "native", families[name], swept=False)
    return sorted(found.values(), key=lambda one: one.name.lower())


def summary(known: list[Architecture]) -> str:
    """The counts of those that were swept, in one line."""
    swept = [one for one in known if one.swept]
    text = [one for one in swept if not one.pictures]
    families = sum(one.road == "native" for one in swept)
    roads = f"{families} by families, {_served(swept) - families} by transformers' code"
    alone = f"{_served(text)} of the {len(text)} for text alone"
    return f"{_served(swept)} of {len(swept)} architectures tried load and generate ({alone}): {roads}"


def _served(known: list[Architecture]) -> int:
    return sum(one.road != "none" for one in known)
