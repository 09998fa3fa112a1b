"""Which layers share blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.model.kv_layout import kv_layout


@pytest.mark.parametrize(
    ("windows", "groups", "depth"),
    [
        ([0] * 28, (0,), 28),
        ([4096] * 32, (4096,), 32),
        ([4096, 0] * 13, (0, 4096), 13),  # Gemma 2
        (
            [512] * 5 + [0] + [512] * 5 + [0] + [512] * 5 + [0] + [512] * 5 + [0] + [512] * 2,
            (0, *[512] * 6),
            4,
        ),  # Gemma 3
        ([4096, 4096, 4096, 0] * 8, (0, 4096, 4096, 4096), 8),  # Command R7B
        ([0] + [128] * 39, (0, *[128] * 8), 5),  # one of forty: no forty tables
    ],
)
def test_groups_of_known_models(windows: list[int], groups: tuple[int, ...], depth: int) -> None:
    layout = kv_layout(windows)
    assert (layout.windows, layout.depth) == (groups, depth)


@given(st.lists(st.sampled_from([0, 5, 9]), min_size=1, max_size=40))
def test_every_layer_has_a_place_of_its_own_in_a_group_of_its_kind(windows: list[int]) -> None:
    layout = kv_layout(windows)
    assert len(set(layout.places)) == len(windows)
    assert all(layout.windows[group] == window for (group, _), window in zip(layout.places, windows, strict=True))
    assert all(place < layout.depth for _, place in layout.places)
    assert list(layout.windows) == sorted(layout.windows)
    assert len(layout.windows) * layout.depth < len(windows) + len(set(windows)) * layout.depth
