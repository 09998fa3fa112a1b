"""What is learnt of a device from the times of its steps."""

from __future__ import annotations

import random

import pytest

from workers.engine.pace import Pace


@pytest.mark.parametrize(("fixed", "per_token"), [(4e-3, 25e-6), (1e-3, 25e-6), (22e-3, 1.7e-3), (2.5e-3, 3e-6)])
@pytest.mark.parametrize("at_first", [16, 160])
def test_as_many_tokens_as_a_step_has_time_for_anyway(fixed: float, per_token: float, at_first: int) -> None:
    pace, draw = Pace(at_first), random.Random(0)
    for _ in range(3000):
        tokens = draw.choice([1, 2, 3, 4, 8, 32, 512, 700, 2048])
        pace.observe(tokens, max(fixed, per_token * tokens) * draw.uniform(0.9, 1.1))
    assert pace.free_tokens == pytest.approx(fixed / per_token, rel=0.25)


def test_a_pause_of_the_machine_counts_little() -> None:
    pace = Pace(160)
    for _ in range(100):
        pace.observe(1, 4e-3)
        pace.observe(512, 512 * 25e-6)
    pace.observe(1, 30.0)
    pace.observe(512, 30.0)
    assert pace.free_tokens == pytest.approx(160, abs=10)


def test_nothing_is_said_before_both_kinds_have_been_seen() -> None:
    pace = Pace(160)
    for _ in range(100):
        pace.observe(512, 1.0)
        pace.observe(100, 1.0)
    assert pace.free_tokens == 160
