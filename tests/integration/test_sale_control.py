"""What operators do to a sale, on real servers: it is in force at once, kept with who and why, and outlives Redis."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from infra.settings import SigningSettings
from sale.accounts.tokens import sign
from sale.books.inventory import Refused as NotReserved
from sale.books.key_record import key_hash
from sale.books.rebuild.fields import sale_arguments
from sale.operations.operations import OperationRefused, Stores, demote_operator
from sale.operations.sale_control import Action, KeyReused, SaleCommand, SaleOver, UnknownProduct, control
from sale.operations.sale_control import sale as read_sale
from sale.tables.queries import SQL
from schemas.ids import ProductId
from schemas.order_state import Status

from .books import Sale, a_sale
from .gateway_fixtures import GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]

PAUSE = SaleCommand(Action.PAUSE, "ned", "wrong picture")
RESUME = SaleCommand(Action.RESUME, "ned", "right picture")


def stores(sale: Sale) -> Stores:
    return Stores(sale.settings, sale.redis, sale.pool, sale.publisher)


async def refusal(sale: Sale) -> str:
    """Why a buyer gets nothing."""
    with pytest.raises(AssertionError) as refused:
        await sale.reserve(1)
    assert isinstance(refused.value.args[0], NotReserved)
    return refused.value.args[0].reason


async def test_a_paused_sale_sells_nothing_until_it_is_resumed_and_settling_goes_on() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 2)
        await sale.place(wish, held)
        assert (await control(stores(sale), sale.product, PAUSE)).state == "paused"
        assert await refusal(sale) == "paused"
        await sale.end(wish, Status.CONFIRMED)
        assert await sale.units() == (10, 8, 0, 2)
        assert (await control(stores(sale), sale.product, RESUME)).state == "open"
        await sale.reserve(1)


async def test_a_pause_survives_a_rebuild_and_the_loss_of_redis() -> None:
    async with a_sale(10) as sale:
        await control(stores(sale), sale.product, PAUSE)
        await sale.rebuild()
        assert await refusal(sale) == "paused"
        await sale.wipe()
        await sale.rebuild("wiped")
        assert await refusal(sale) == "paused"


async def test_a_pause_that_meets_a_rebuild_half_way_is_in_force_when_the_books_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rebuild has read the row already; the pause finds the product closed and leaves Redis alone."""
    async with a_sale(10) as sale:
        publish = sale.publisher.publish
        paused = []

        def pause_and_publish(*args: object, **more: object) -> object:
            import asyncio

            async def both() -> None:
                paused.append(await control(stores(sale), sale.product, PAUSE))
                await publish(*args, **more)  # type: ignore[arg-type]  # passed on as they came

            return asyncio.ensure_future(both())

        monkeypatch.setattr(sale.publisher, "publish", pause_and_publish)
        await sale.rebuild()
        assert [result.in_force for result in paused] == [False]
        assert await refusal(sale) == "paused"


async def test_an_older_action_does_not_undo_a_newer_one() -> None:
    """Two operators at once: what Postgres took last is what Redis shows, in whatever order they arrive there."""
    async with a_sale(10) as sale:
        await control(stores(sale), sale.product, PAUSE)
        paused = sale_arguments(await sale.pool.fetchrow(SQL.product, sale.product))
        await control(stores(sale), sale.product, RESUME)
        assert await sale.inventory.control(paused)
        await sale.reserve(1)


async def test_a_closed_sale_is_over_for_good() -> None:
    async with a_sale(10) as sale:
        closed = await control(stores(sale), sale.product, SaleCommand(Action.CLOSE, "ned", "recalled"))
        assert closed.state == "over"
        assert await refusal(sale) == "closed"
        await sale.rebuild()
        assert await refusal(sale) == "closed"
        with pytest.raises(SaleOver):
            await control(stores(sale), sale.product, RESUME)


async def test_a_sale_that_is_over_by_postgres_clock_is_over_whatever_redis_clock_says() -> None:
    async with a_sale(10) as sale:
        row = dict(await sale.pool.fetchrow(SQL.product, sale.product) or {})
        an_hour_on = row["read_at"] + timedelta(hours=1)
        assert await sale.inventory.control(sale_arguments(row | {"closes_at": an_hour_on, "read_at": an_hour_on}))
        assert await refusal(sale) == "closed"


async def test_a_restock_adds_units_once_a_key_under_a_new_epoch() -> None:
    async with a_sale(2) as sale:
        wish, held = await sale.reserve(1, 2)
        await sale.place(wish, held)
        assert await refusal(sale) == "sold_out"
        restock = SaleCommand(Action.RESTOCK, "ned", "second delivery", units=5, key_hash=key_hash("delivery-2"))
        for _ in range(2):
            assert (await control(stores(sale), sale.product, restock)).initial == 7
        assert await sale.units() == (7, 5, 2, 0)
        assert int((await sale.stock())["epoch"]) > held.epoch
        with pytest.raises(OperationRefused):
            await control(stores(sale), sale.product, SaleCommand(Action.RESTOCK, "ned", "too much", units=2**31 - 1))


def keyed(wish: SaleCommand, key: str) -> SaleCommand:
    return replace(wish, key_hash=key_hash(key))


async def test_a_key_serves_one_wish_and_every_other_wish_with_it_is_refused() -> None:
    """Another action, product, number of units or reason; also where the first changed nothing. Refused wishes keep none."""
    async with a_sale(2) as sale, a_sale(2) as other:
        restock = keyed(SaleCommand(Action.RESTOCK, "ned", "second delivery", units=1), "delivery")
        assert (await control(stores(sale), sale.product, restock)).initial == 3
        for changed in (replace(restock, units=5), replace(restock, why="third"), keyed(PAUSE, "delivery")):
            with pytest.raises(KeyReused):
                await control(stores(sale), sale.product, changed)
        with pytest.raises(KeyReused):
            await control(stores(other), other.product, restock)
        again = await control(stores(sale), sale.product, restock)
        assert (again.state, again.initial, again.replayed) == ("open", 3, True)
        assert (await control(stores(sale), sale.product, replace(restock, who="cat"))).initial == 4
        await control(stores(sale), sale.product, keyed(RESUME, "no change"))
        with pytest.raises(KeyReused):
            await control(stores(sale), sale.product, keyed(PAUSE, "no change"))
        await control(stores(sale), sale.product, SaleCommand(Action.CLOSE, "ned", "recalled"))
        with pytest.raises(SaleOver):
            await control(stores(sale), sale.product, keyed(PAUSE, "too late"))
        assert (await control(stores(sale), sale.product, keyed(RESUME, "no change"))).replayed


async def test_one_key_used_for_two_wishes_at_once_grants_one() -> None:
    """Whichever comes first."""
    async with a_sale(2) as sale:
        wishes = [
            keyed(SaleCommand(Action.RESTOCK, "ned", "delivery", units=units), "delivery") for units in (1, 5) * 4
        ]
        ends = await asyncio.gather(
            *(control(stores(sale), sale.product, wish) for wish in wishes), return_exceptions=True
        )
        granted = {wish.units for wish, end in zip(wishes, ends, strict=True) if not isinstance(end, BaseException)}
        assert len(granted) == 1
        assert (await read_sale(sale.pool, sale.product)).initial == 2 + (granted.pop() or 0)


async def test_the_trail_says_who_did_what_when_and_why() -> None:
    """What changed nothing leaves no line."""
    async with a_sale(2) as sale:
        for wish in PAUSE, PAUSE, RESUME, RESUME, SaleCommand(Action.RESTOCK, "cat", "found some", units=1):
            await control(stores(sale), sale.product, wish)
        trail = (await read_sale(sale.pool, sale.product)).trail
        assert [(line.action, line.units, line.who, line.why) for line in trail] == [
            ("restock", 1, "cat", "found some"),
            ("resume", None, "ned", "right picture"),
            ("pause", None, "ned", "wrong picture"),
        ]


@pytest.mark.parametrize(
    "wish",
    [
        SaleCommand(Action.PAUSE, "ned", " "),
        SaleCommand(Action.PAUSE, "ned", "two\nlines"),
        SaleCommand(Action.PAUSE, "ned", "why", units=1),
        SaleCommand(Action.RESTOCK, "ned", "why"),
        SaleCommand(Action.RESTOCK, "ned", "why", units=0),
    ],
    ids=["no why", "control characters", "units of a pause", "no units", "nothing"],
)
async def test_a_wish_that_makes_no_sense_changes_nothing(wish: SaleCommand) -> None:
    async with a_sale(1) as sale:
        with pytest.raises(OperationRefused):
            await control(stores(sale), sale.product, wish)
        with pytest.raises(UnknownProduct):
            await control(stores(sale), ProductId(7), PAUSE)
        assert (await read_sale(sale.pool, sale.product)).trail == []


async def test_over_http_only_operators_control_sales(gateway: GatewayClient) -> None:
    """403 for a user, 401 for nobody; a paused sale tells buyers so."""
    product = await gateway.product(1)
    path = f"/api/ops/sales/{product}"
    ned = await gateway.operator()
    operator = ned.bearer
    body = {"action": "pause", "why": "wrong picture"}
    for method, options in ("GET", {}), ("POST", {"json": body}):
        assert (await gateway.ask(method, path, **options)).is_problem(401, "unauthorized")
        assert (await gateway.ask(method, path, headers=gateway.bearer, **options)).is_problem(403, "forbidden")
    paused = await gateway.ask("POST", path, headers=operator, json=body)
    assert (paused.status, paused.json["state"], paused.json["inForce"]) == (200, "paused", True)
    assert (await gateway.buy({"productId": product})).is_problem(503, "sale_paused")
    await gateway.ask("POST", path, headers=operator, json={"action": "resume", "why": "right picture"})
    assert (await gateway.buy({"productId": product})).status == 202
    restock = {"action": "restock", "why": "second delivery", "units": 3}
    keyed = operator | {"Idempotency-Key": "delivery-2"}
    for replayed in (None, "true"):
        again = await gateway.ask("POST", path, headers=keyed, json=restock)
        assert (again.status, again.json["initial"], again.headers.get("Idempotent-Replayed")) == (200, 4, replayed)
    for other in (restock | {"units": 5}, body):
        assert (await gateway.ask("POST", path, headers=keyed, json=other)).is_problem(422, "key_reused")
    assert await gateway.available(product) == 3
    await gateway.ask("POST", path, headers=operator, json={"action": "close", "why": "recalled"})
    assert (await gateway.buy({"productId": product})).is_problem(409, "sale_closed")
    shown = await gateway.ask("GET", path, headers=operator)
    assert [line["action"] for line in shown.json["actions"]] == ["close", "restock", "resume", "pause"]
    assert {line["who"] for line in shown.json["actions"]} == {f"user {ned.user_id}"}
    assert (await gateway.ask("POST", path, headers=operator, json=body)).is_problem(409, "sale_closed")
    for bad in {"action": "burn", "why": "x"}, {"action": "pause"}, {"action": "restock", "why": "x"}:
        assert (await gateway.ask("POST", path, headers=operator, json=bad)).is_problem(400, "invalid_request")
    assert (await gateway.ask("GET", "/api/ops/sales/7", headers=operator)).is_problem(404, "not_found")


async def test_an_operator_who_is_one_no_longer_controls_nothing(
    gateway: GatewayClient, settings: SigningSettings
) -> None:
    """The token names the role for a day; the database is asked each time, and where it is away nobody is an operator."""
    path = f"/api/ops/sales/{await gateway.product(1)}"
    pause = {"action": "pause", "why": "revenge"}
    ned = await gateway.operator()
    assert (await gateway.ask("GET", path, headers=ned.bearer)).status == 200
    async with gateway_on(settings, db_port=9) as without_postgres:
        answer = await without_postgres.ask("POST", path, headers=ned.bearer, json=pause)
        assert answer.is_problem(503, "unavailable")
    email = await gateway.to.pool.fetchval("SELECT email FROM users WHERE id = $1", ned.user_id)
    assert await demote_operator(gateway.to, email) == ned.user_id
    for method, options in ("GET", {}), ("POST", {"json": pause}):
        assert (await gateway.ask(method, path, headers=ned.bearer, **options)).is_problem(403, "forbidden")
    with pytest.raises(OperationRefused, match="no operator"):
        await demote_operator(gateway.to, email)
    nobody = {"Authorization": f"Bearer {sign(10**17, 'operator', settings)}"}
    assert (await gateway.ask("GET", path, headers=nobody)).is_problem(403, "forbidden")
    assert (await gateway.buy({"productId": int(path.rpartition("/")[2])})).status == 202
