"""What a model's makers suggest for parameters that a job leaves unset.

Both doors and batches meet here: a job on the wire says what its caller said, and nothing for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from schemas.messages import Job, SamplingParams
from workers.front.text import Prompt

MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """`values` by parameter; `max_tokens` among them is the length of an output that asks for none."""

    values: dict[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SamplingDefaults:
        """Raises msgspec.ValidationError where a value is out of range."""
        msgspec.convert(dict(values), SamplingParams)
        return cls(dict(values))

    def applied(self, job: Job) -> Job:
        """The job with these values where it has none."""
        sampling, values = job.sampling, self.values.items()
        unset = {name: value for name, value in values if name != MAX_TOKENS and getattr(sampling, name) is None}
        return msgspec.structs.replace(job, sampling=msgspec.structs.replace(sampling, **unset)) if unset else job

    def limited(self, job: Job, prompt: Prompt) -> Prompt:
        """The prompt with this output length where the job leaves it at all the room that there is."""
        longest = self.values.get(MAX_TOKENS)
        if longest is None or job.sampling.max_tokens is not None:
            return prompt
        return replace(prompt, max_tokens=min(prompt.max_tokens, max(longest, job.sampling.min_tokens)))


NO_DEFAULTS = SamplingDefaults({})
