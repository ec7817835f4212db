"""`/api/ops/`: operators control a sale over HTTP, with the actions and the audit trail of `thrones sale`."""

from typing import Annotated, Any

import asyncpg
import msgspec
from aiohttp import web
from aiokafka.errors import KafkaError
from msgspec import UNSET, Meta, UnsetType

from gateway.accounts.identity import AuthenticatedUser, Identity
from gateway.buying.catalogue import parse_product_id
from gateway.buying.purchases import idempotency_key
from gateway.http.bodies import QUERY_TIMEOUT_S, REPLAYED, answer, iso, read_members
from gateway.http.problems import Problem
from gateway.http.slow_bodies import SlowBodies
from infra.kafka.publisher import Publisher
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError, connect_redis
from infra.settings import Settings
from sale.books.key_record import key_hash
from sale.books.rebuild.rebuild import RebuildImpossible
from sale.operations.operations import OperationRefused, Stores
from sale.operations.sale_control import (
    Action,
    KeyReused,
    SaleCommand,
    SaleOver,
    SaleStatus,
    UnknownProduct,
    check,
    control,
    sale,
)
from sale.tables.queries import SQL
from schemas.limits import LONGEST_WHY

OPERATOR = "operator"
REDIS_TIMEOUT_S = 5.0  # a restock rebuilds the books


class Control(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    action: Action
    why: Annotated[str, Meta(min_length=1, max_length=LONGEST_WHY)]
    units: Annotated[int, Meta(ge=1, le=2**31 - 1)] | UnsetType = UNSET


class Ops:
    def __init__(
        self, settings: Settings, identity: Identity, bodies: SlowBodies, pool: asyncpg.Pool, publisher: Publisher
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._bodies = bodies
        self._pool = pool
        self._publisher = publisher

    async def show(self, request: web.Request) -> web.Response:
        await self._operator(request)
        product = parse_product_id(request.match_info["id"])
        try:
            return answer(_public(await sale(self._pool, product)))
        except UnknownProduct:
            raise Problem("not_found") from None
        except UNAVAILABLE:
            raise Problem("unavailable") from None

    async def control(self, request: web.Request) -> web.Response:
        """504 if a store failed half-way: the action may be recorded, and a repetition puts it in force."""
        operator = await self._operator(request)
        key = idempotency_key(request)
        product = parse_product_id(request.match_info["id"])
        body = await read_members(request, self._bodies, Control, operator.id)
        units = None if body.units is UNSET else body.units
        command = SaleCommand(body.action, f"user {operator.id}", body.why, units, key_hash(key) if key else None)
        try:
            check(command)
            redis = connect_redis(self._settings, connections=4, timeout_s=REDIS_TIMEOUT_S)
            try:
                stores = Stores(self._settings, redis, self._pool, self._publisher)
                return _controlled(await control(stores, product, command))
            finally:
                await redis.aclose()
        except UnknownProduct:
            raise Problem("not_found") from None
        except SaleOver:
            raise Problem("sale_closed") from None
        except KeyReused:
            raise Problem("key_reused") from None
        except OperationRefused as refused:
            raise Problem("invalid_request", f"{refused}.") from None
        except (*UNAVAILABLE, RedisError, KafkaError, RebuildImpossible):
            raise Problem("outcome_unknown", "The action may be recorded; repeat it with the same key.") from None

    async def _operator(self, request: web.Request) -> AuthenticatedUser:
        """The operator. It asks Postgres too: a token keeps its role for a day, even if the operator was demoted."""
        user = self._identity.user_of(request)
        if user.role != OPERATOR:
            raise Problem("forbidden")
        try:
            row = await self._pool.fetchrow(SQL.user_by_id, user.id, timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        if row is None or row["role"] != OPERATOR:
            raise Problem("forbidden")
        return user


def _controlled(sale: SaleStatus) -> web.Response:
    response = answer(_public(sale))
    if sale.replayed:
        response.headers.update(REPLAYED)
    return response


def _public(sale: SaleStatus) -> dict[str, Any]:
    return {
        "productId": sale.product_id,
        "state": sale.state,
        "initial": sale.initial,
        "inForce": sale.in_force,
        "actions": [
            {
                "id": entry.id,
                "action": entry.action,
                "units": entry.units,
                "who": entry.who,
                "why": entry.why,
                "at": iso(entry.at),
            }
            for entry in sale.trail
        ],
    }
