"""The record of an accepted Idempotency-Key, kept for 24 hours: its order and body, in as few bytes as possible.

For most orders it is all that Redis keeps, so its size limits the orders per day (docs/capacity.md). The order id has 22
characters here. Records of an earlier release have the full id; both forms are read.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from uuid import UUID

from infra.redis.trips import CommandSource
from sale.books import keys
from schemas.ids import OrderId, UserId

SHORT_CHARACTERS = 22


def key_hash(idempotency_key: str) -> str:
    """The stored form of an Idempotency-Key: its SHA-256 as 64 hexadecimal characters."""
    return sha256(idempotency_key.encode()).hexdigest()


def body(product: int, quantity: int) -> str:
    """The body of a purchase, for comparison."""
    return f"{product}:{quantity}"


def short(order_id: OrderId) -> str:
    return urlsafe_b64encode(bytes.fromhex(order_id.replace("-", ""))).rstrip(b"=").decode()


def record(order_id: OrderId, product: int, quantity: int) -> str:
    return f"{short(order_id)} {body(product, quantity)}"


def parse(text: str) -> tuple[OrderId, str]:
    """The order and the body of a record. Raises ValueError if our code did not write it."""
    order_id, _, of_body = text.partition(" ")
    if len(order_id) == SHORT_CHARACTERS:
        order_id = str(UUID(bytes=urlsafe_b64decode(f"{order_id}==")))
    return OrderId(order_id), of_body


async def read(source: CommandSource, of: Sequence[tuple[UserId, str]]) -> list[str | None]:
    """The records of these users' hashed keys; None where there is none."""
    [found] = await source.replies([("MGET", *(keys.key_record(user, hashed) for user, hashed in of))])
    return [None if value is None else value.decode() for value in found]
