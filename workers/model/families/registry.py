"""Which family reads which architecture."""

from __future__ import annotations

from typing import Any

from workers.model.config import DecoderConfig
from workers.model.families import (
    bloom,
    cohere,
    deepseek,
    exaone,
    falcon,
    gemma,
    glm,
    glm_moe,
    gpt,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    mpt,
    nemotron,
    olmo,
    olmoe,
    opt,
    phi,
    phi3,
    qwen,
    qwen_moe,
    smollm,
    stablelm,
    starcoder2,
    variants,
)
from workers.model.families.check import check
from workers.model.families.family import Family, ReadConfig

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen.FAMILY,
    qwen_moe.FAMILY,
    gemma.FAMILY,
    phi3.FAMILY,
    phi.FAMILY,
    falcon.FAMILY,
    cohere.FAMILY,
    bloom.FAMILY,
    gpt.FAMILY,
    gpt_neox.FAMILY,
    opt.FAMILY,
    starcoder2.FAMILY,
    olmo.FAMILY,
    olmoe.FAMILY,
    granite.FAMILY,
    glm.FAMILY,
    glm_moe.FAMILY,
    deepseek.FAMILY,
    gpt_oss.FAMILY,
    stablelm.FAMILY,
    nemotron.FAMILY,
    exaone.FAMILY,
    smollm.FAMILY,
    mpt.FAMILY,
    variants.FAMILY,
)


def architectures() -> dict[str, ReadConfig]:
    """What reads each architecture's config."""
    return {name: read for family in FAMILIES for name, read in family.architectures.items()}


class UnsupportedModel(ValueError):
    """No family serves this checkpoint; the message says why."""


def decoder_config(raw: dict[str, Any]) -> DecoderConfig:
    """The decoder of a checkpoint's config.json. Raises UnsupportedModel."""
    names, served = raw.get("architectures") or [], architectures()
    read = next((served[name] for name in names if name in served), None)
    if read is None:
        given = ", ".join(names) or "unnamed"
        raise UnsupportedModel(f"architecture {given} is not supported; supported: {', '.join(served)}")
    try:
        config = read(raw)
        check(config)
    except KeyError as missing:
        raise UnsupportedModel(f"the model's config lacks {missing}") from None
    except ValueError as error:
        raise UnsupportedModel(str(error)) from error
    except (TypeError, AttributeError, IndexError, ZeroDivisionError) as error:  # null for a number, a list for a table
        raise UnsupportedModel(f"the model's config cannot be understood: {error}") from error
    return config
