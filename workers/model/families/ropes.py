"""Rope settings, as configs spell them."""

from __future__ import annotations

import math

from workers.model.config import RopeConfig, RopeKind
from workers.model.families.family import Raw

_ROPE_KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}


def rope_settings(raw: Raw) -> Raw:
    """Of either spelling: rope_scaling beside rope_theta, or rope_parameters."""
    return {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}


def rope(
    raw: Raw,
    head_dim: int,
    *,
    theta: float = 10000.0,
    partial: float = 1.0,
    interleaved: bool = False,
    settings: Raw | None = None,
) -> RopeConfig:
    """theta, partial: the family's defaults; partial is the rotated share of each head. settings: those of one kind of
    layer, where kinds differ."""
    settings = rope_settings(raw) if settings is None else settings
    named = settings.get("rope_type", settings.get("type", "default"))
    if named not in _ROPE_KINDS:
        raise ValueError(f"rope type {named!r} is not supported; supported: {', '.join(_ROPE_KINDS)}")
    kind = _ROPE_KINDS[named]
    longest = raw.get("max_position_embeddings") or 2048
    original = (
        settings.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings") or longest
    )
    factor = settings.get("factor") or (longest / original if kind in ("yarn", "longrope") else 1.0)
    share: float = settings.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or partial
    return RopeConfig(
        theta=float(settings.get("rope_theta") or raw.get("rope_theta") or theta),
        dim=int(head_dim * share),
        kind=kind,
        interleaved=interleaved,
        factor=float(factor),
        low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
        high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
        beta_fast=float(settings.get("beta_fast") or 32.0),
        beta_slow=float(settings.get("beta_slow") or 1.0),
        truncate=settings.get("truncate", True),
        original_max_position=longest if kind == "dynamic" else int(original),
        magnitude=_magnitude(kind, settings, float(factor), int(original)),
        factors=tuple(settings.get("short_factor") or ()),
        long_factors=tuple(settings.get("long_factor") or ()),
    )


def ropes_by_type(raw: Raw, dim: int, *, theta: float, local_theta: float) -> tuple[RopeConfig, RopeConfig]:
    """Of layers that see everything, and of those that slide. theta, local_theta: where the config gives none."""
    given = raw.get("rope_parameters") or {}
    if "full_attention" in given or "sliding_attention" in given:
        everywhere, local = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    else:
        everywhere = {"rope_theta": raw.get("rope_theta"), **rope_settings(raw)}
        local = {"rope_theta": raw.get("rope_local_base_freq")}
    everywhere = {**everywhere, "rope_theta": everywhere.get("rope_theta") or theta}
    local = {**local, "rope_theta": local.get("rope_theta") or local_theta}
    return rope(raw, dim, settings=everywhere), rope(raw, dim, settings=local)


def _magnitude(kind: str, settings: Raw, factor: float, original: int) -> float:
    """What a config gives, or what the papers on yarn and longrope recommend."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    if factor <= 1.0:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    scale, whole = float(settings.get("mscale") or 0.0), float(settings.get("mscale_all_dim") or 0.0)
    if not (scale and whole):
        scale, whole = 1.0, 0.0
    return (0.1 * scale * math.log(factor) + 1) / (0.1 * whole * math.log(factor) + 1)
