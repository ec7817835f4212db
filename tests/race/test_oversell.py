"""Storms on one product from several processes: the script gives out exactly the stock, and the same storm without it oversells."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from infra.redis.client import connect_redis
from infra.settings import Settings
from schemas.ids import ProductId
from tests.books import Books, open_books, read_books
from tests.race.storm import PROCESSES, Answer, Buying, Copies, Crowd, Guard, buy, copy

STOCK = 300
ORDERS = 400  # a process, so four buyers for each unit
ROUNDS = 5


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with Crowd() as processes:
        yield processes


def opened(settings: Settings, product: ProductId, initial: int) -> None:
    async def open_product() -> None:
        redis = connect_redis(settings, timeout_s=5.0)
        await redis.delete(f"meeting:{product}")
        await open_books(redis, product, initial)
        await redis.aclose()

    asyncio.run(open_product())


def books_of(settings: Settings, product: ProductId) -> Books:
    async def read() -> Books:
        redis = connect_redis(settings, timeout_s=5.0)
        books = await read_books(redis, product)
        await redis.aclose()
        return books

    return asyncio.run(read())


def storm(
    crowd: Crowd, settings: Settings, product: ProductId, guard: Guard, quantities: tuple[int, ...] = (1,)
) -> int:
    """Units given out in one storm."""
    parts = [Buying(settings, product, ORDERS, quantities, guard, number) for number in range(PROCESSES)]
    return sum(crowd.storm(buy, parts))


def test_a_storm_on_one_product_sells_exactly_its_stock_every_time(
    crowd: Crowd, redis_settings: Settings, new_product: Callable[[], ProductId]
) -> None:
    """Promise 1: accepted units equal the stock, round after round, with one version for each acceptance."""
    for _ in range(ROUNDS):
        product = new_product()
        opened(redis_settings, product, STOCK)
        assert storm(crowd, redis_settings, product, "reserve.lua") == STOCK
        books = books_of(redis_settings, product)
        books.check()
        assert (books.available, books.held, books.version) == (0, STOCK, STOCK)
        assert sorted(entry.version for entry in books.entries.values()) == list(range(1, STOCK + 1))


def test_the_same_storm_oversells_without_the_script(
    crowd: Crowd, redis_settings: Settings, new_product: Callable[[], ProductId]
) -> None:
    """The negative control: GET then SET gives out more than there is, so the storm above would show it."""
    product = new_product()
    opened(redis_settings, product, STOCK)
    assert storm(crowd, redis_settings, product, "GET then SET") > STOCK


def test_a_storm_of_mixed_quantities_never_oversells_and_leaves_less_than_one_order(
    crowd: Crowd, redis_settings: Settings, new_product: Callable[[], ProductId]
) -> None:
    """997 units in orders of 1 to 5: never more are given out, and nothing stays that the smallest order could take."""
    product = new_product()
    opened(redis_settings, product, 997)
    given = storm(crowd, redis_settings, product, "reserve.lua", quantities=(1, 2, 3, 4, 5))
    books = books_of(redis_settings, product)
    books.check()
    assert given == books.held == 997


def test_fifty_copies_of_a_key_at_once_are_one_order(
    crowd: Crowd, redis_settings: Settings, new_product: Callable[[], ProductId]
) -> None:
    """I7: 200 keys, about 50 concurrent copies each over all processes, a tenth with a changed body: one order a key."""
    product = new_product()
    opened(redis_settings, product, 1_000)
    parts = [Copies(redis_settings, product, keys=200, copies=50 // PROCESSES, number=n) for n in range(PROCESSES)]
    answers: list[Answer] = [answer for part in crowd.storm(copy, parts) for answer in part]
    orders: dict[str, set[str]] = defaultdict(set)
    for key, order_id, _ in answers:
        orders[key].add(order_id)
    assert len(orders) == 200
    assert all(len(ids) == 1 for ids in orders.values())
    books = books_of(redis_settings, product)
    books.check()
    assert len(books.entries) == books.version == 200
    other_bodies = sum(not same for _, _, same in answers)
    assert 200 <= other_bodies <= len(answers) - 200
