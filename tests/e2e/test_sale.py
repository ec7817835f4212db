"""A sale from outside clients to balanced books, on real processes; and the audit that would say if they did not balance."""

import asyncio
import json
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from .stack import GOOD_WEATHER, Stack

pytestmark = pytest.mark.timeout(240)
STOCK = 2_000


def books(report: dict[str, Any]) -> dict[str, Any]:
    assert report["ok"], json.dumps(report, indent=1)
    (product,) = report["products"]
    assert (product["oversold"], product["lost"], product["stranded"], product["charges"]["double"]) == (0, 0, 0, 0)
    return dict(product)


@pytest.fixture
def sold(stack: Stack) -> int:
    """A product that 200 arrivals a second have bought from for 5 s in bad weather, everything followed to its end."""
    product = stack.new_product(STOCK)
    result = asyncio.run(
        stack.buy(product, mode="open", rate=200, seconds=5, quantities=(1, 3), double_clicks=0.2, follow=1.0)
    )
    assert (result.arrivals, result.orders) == (1_000, 1_000)
    assert result.outcomes == {"A": result.requests}
    assert (result.two_orders, result.bad_answers, result.over_5_s) == ([], [], 0)
    assert sum(result.ends.values()) == result.orders
    assert set(result.ends) == {"confirmed", "payment_failed"}
    return product


def test_a_sale_ends_with_every_order_ended_and_stock_exact_to_the_unit_and_the_audit_sees_what_does_not_fit(
    stack: Stack, sold: int, tmp_path: Path
) -> None:
    """Declines give their units back; what clients see as stock is what the books say. The controls: a promise that
    was not kept, and an order that no client placed, are named."""
    product = books(stack.audit(sold))
    confirmed = product["postgres"]["confirmed"]["units"]
    assert product["log"]["accepted"] == product["log"]["confirmed"] + product["log"]["released"]
    assert product["postgres"]["payment_failed"]["orders"] > 0
    assert stack.get(f"/api/products/{sold}")["stock"] == STOCK - confirmed

    lines = stack.client_log(sold).read_text().splitlines()
    missed = random.choice([json.loads(line) for line in lines])["order"]
    promised = str(uuid.uuid4())
    tampered = tmp_path / "clients.jsonl"
    kept = [line for line in lines if missed not in line]
    tampered.write_text("\n".join([*kept, kept[0].replace(json.loads(kept[0])["order"], promised)]))
    problems = "\n".join(stack.audit(sold, tampered)["problems"])
    assert f"accepted, not served: order {promised}" in problems
    assert f"order nobody placed: {missed}" in problems
    assert "one key, two orders" in problems


async def test_five_hundred_units_sell_out_to_double_clicking_buyers_exactly_once_each(stack: Stack) -> None:
    """Half of all wishes are sent twice at once with the same key: no unit more than there are, none left over, one order
    a key, and every repeat got the first answer."""
    await asyncio.to_thread(stack.set_weather, GOOD_WEATHER)
    product = await asyncio.to_thread(stack.new_product, 500)
    result = await stack.buy(product, mode="sell-out", connections=64, double_clicks=0.5, quiet_s=1.0)
    assert result.orders == 500
    assert result.accepted > 600, "the double clicks' second answers are 202 as well"
    assert set(result.answers) == {"202", "409 sold_out"}
    assert (result.two_orders, result.bad_answers) == ([], [])
    found = books(await asyncio.to_thread(stack.audit, product))
    assert found["redis"] == {"available": 0, "held": 0, "sold": 500}
    assert found["postgres"]["confirmed"] == {"orders": 500, "units": 500}
    assert found["charges"] == {"captured": 500, "double": 0}


async def test_clients_that_hang_up_and_ask_again_with_their_key_get_one_order(stack: Stack) -> None:
    """A client that gave up after a few milliseconds has no answer, but its order is placed once, and its key finds it."""
    await asyncio.to_thread(stack.set_weather, GOOD_WEATHER)
    product = await asyncio.to_thread(stack.new_product, STOCK)
    hasty = stack.buy(product, mode="open", rate=100, seconds=3, drop_after_ms=2, retries=1)
    result = await hasty
    assert result.unknown > 0, "nobody hung up: this run proves nothing"
    assert (result.two_orders, result.bad_answers) == ([], [])
    books(await asyncio.to_thread(stack.audit, product))
