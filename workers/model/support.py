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
    with the installed transformers."""

    name: str
    road: Road
    family: str = ""
    reason: str = ""
    swept: bool = True


def architectures(swept: Path = SWEPT) -> list[Architecture]:
    """All that are known, by name. One that several model types share is served where one of them is."""
    families = {name: family.name for family in FAMILIES for name in family.architectures}
    found: dict[str, Architecture] = {}
    for line in swept.read_text().splitlines():
        result = json.loads(line)
        name, road = result["architecture"], result["road"]
        known = Architecture(name, road, families.get(name, "") if road == "native" else "", result.get("reason", ""))
        found[name] = min(found.get(name, known), known, key=lambda one: _BEST.index(one.road))
    for name in families.keys() - found.keys():
        found[name] = Architecture(name, "native", families[name], swept=False)
    return sorted(found.values(), key=lambda one: one.name.lower())


def summary(known: list[Architecture]) -> str:
    """The counts of those that were swept, in one line."""
    swept = [one for one in known if one.swept]
    counts = {road: sum(one.road == road for one in swept) for road in _BEST}
    served = counts["native"] + counts["backend"]
    roads = f"{counts['native']} by families, {counts['backend']} by transformers' code"
    return f"{served} of {len(swept)} architectures tried load and generate: {roads}"
