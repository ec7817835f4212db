"""The names of all Redis keys. Those of one product share a hash tag, so that in Redis Cluster too one script may use them."""

from base64 import urlsafe_b64encode

from schemas.ids import OrderId, ProductId, UserId

PIPELINE = "pipeline"  # hash: how long the members of the stages expect orders to wait
BOOKS_RUN = "books:run"  # the Redis run in which the books of all products were last verified


def stock(product: ProductId) -> str:
    return f"stock:{{p{product}}}"


def held(product: ProductId) -> str:
    return f"held:{{p{product}}}"


def due(product: ProductId) -> str:
    return f"due:{{p{product}}}"


def buyers(product: ProductId) -> str:
    return f"buyers:{{p{product}}}"


def prepared(key: str, epoch: int) -> str:
    """The name under which a rebuild writes `key` before its books are in force."""
    return f"{key}:new:{epoch}"


def order(order_id: OrderId) -> str:
    return f"order:{order_id}"


def unstored(user: UserId) -> str:
    """Sorted set: the user's accepted orders that Postgres may not have yet."""
    return f"unstored:{{u{user}}}"


def key_record(user: UserId, hashed_key: str) -> str:
    """Uses 128 bits of the hash: a key belongs to one user, so keys of other users cannot collide with it."""
    return f"key:{{u{user}}}:{urlsafe_b64encode(bytes.fromhex(hashed_key[:32])).rstrip(b'=').decode()}"


def whole_key_record(user: UserId, hashed_key: str) -> str:
    """The name that an earlier release used."""
    return f"key:{{u{user}}}:{hashed_key}"


def declined(product: ProductId) -> str:
    return f"declined:{{p{product}}}"
