"""Five times what can be served, in simulated time: nothing accepted is lost, the queue stays bounded, and who waits as
told gets in."""

from __future__ import annotations

import pytest

from tests.admission.simulation import Client, Simulation, poisson

RATE = 20.0
MAX_WAIT = 10.0


def told_when(clients: list[Client]) -> list[Client]:
    """Those whose first answer was a refusal with a Retry-After."""
    return [client for client in clients if client.told and client.told[0] is not None]


@pytest.mark.parametrize("apis", [1, 4])
@pytest.mark.parametrize("seconds", [15.0, 300.0])
async def test_who_waits_as_told_is_admitted_at_the_first_retry(apis: int, seconds: float) -> None:
    simulation = Simulation(rate=RATE, max_wait=MAX_WAIT, apis=apis)
    begun = simulation.now
    await simulation.run(poisson(5 * RATE, seconds), seconds)
    await simulation.run(iter(()), 180)
    accepted = [client for client in simulation.clients if client.accepted_at is not None]
    assert all(client.ended_at is not None for client in accepted)
    refused = told_when(simulation.clients)
    assert len(refused) > 100
    assert all(1 <= wait <= 120 for client in refused for wait in client.told if wait is not None)
    first = [client for client in refused if client.attempts == 2 and client.accepted_at is not None]
    assert len(first) >= 0.9 * len(refused)
    assert simulation.longest <= 2 * RATE * MAX_WAIT
    waits = [client.started_at - client.accepted_at for client in accepted if client.started_at and client.accepted_at]
    assert max(waits) <= 2 * MAX_WAIT
    busy = max(client.ended_at or 0.0 for client in accepted) - begun
    assert len(accepted) / busy >= 0.85 * RATE


async def test_a_service_within_its_capacity_refuses_nobody() -> None:
    simulation = Simulation(rate=RATE, max_wait=MAX_WAIT, apis=2)
    await simulation.run(poisson(0.8 * RATE, 120), 120)
    assert [client.told for client in simulation.clients if client.told] == []


async def test_clients_that_never_come_back_leave_no_hole() -> None:
    """Their places are not kept from others, who get in while the queue is short."""
    simulation = Simulation(rate=RATE, max_wait=MAX_WAIT, apis=1)
    await simulation.run(poisson(5 * RATE, 30), 30)
    simulation._coming.clear()
    await simulation.run(iter(()), 15)
    before = len(simulation.clients)
    await simulation.run(poisson(0.5 * RATE, 30), 30)
    late = simulation.clients[before:]
    assert all(client.attempts == 1 and client.accepted_at is not None for client in late)
