"""The names of all Redis keys. Those of one product share a hash tag, so that one script may touch them in Redis Cluster too."""

from base64 import urlsafe_b64encode

from schemas.ids import OrderId, ProductId, UserId

BOOKS_RUN = "books:run"  # the Redis run for which every product's books were last verified


def stock(product: ProductId) -> str:
    return f"stock:{{p{product}}}"


def held(product: ProductId) -> str:
    return f"held:{{p{product}}}"


def due(product: ProductId) -> str:
    return f"due:{{p{product}}}"


def buyers(product: ProductId) -> str:
    return f"buyers:{{p{product}}}"


def prepared(key: str, epoch: int) -> str:
    """Where a rebuild writes `key` before its books are put in force."""
    return f"{key}:new:{epoch}"


def order(order_id: OrderId) -> str:
    return f"order:{order_id}"


def unstored(user: UserId) -> str:
    """Sorted set: the user's accepted orders that Postgres may not have yet."""
    return f"unstored:{{u{user}}}"


def key_record(user: UserId, hashed_key: str) -> str:
    """Of 128 bits of the hash: a key is its user's own, so nobody else's can meet it."""
    return f"key:{{u{user}}}:{urlsafe_b64encode(bytes.fromhex(hashed_key[:32])).rstrip(b'=').decode()}"


def whole_key_record(user: UserId, hashed_key: str) -> str:
    """Where a release before this one wrote it."""
    return f"key:{{u{user}}}:{hashed_key}"


def declined(product: ProductId) -> str:
    return f"declined:{{p{product}}}"
