"""What Redis keeps of an order, written short and read back; what the release before wrote is read as well."""

from hypothesis import given
from hypothesis import strategies as st

from sale.books import key_record, keys
from sale.books.key_record import key_hash
from sale.books.read_model import LETTERS, history, steps_text
from schemas.ids import UserId, new_order_id, parse_order_id
from schemas.order_state import Status

TIMES_MS = st.integers(0, 2**45)
LISTPACK_VALUE_BYTES = 64  # hash-max-listpack-value


def test_every_status_has_a_letter_of_its_own() -> None:
    assert set(LETTERS) == set(Status)
    assert len(set(LETTERS.values())) == len(Status)


@given(
    placed_ms=TIMES_MS,
    steps=st.lists(st.tuples(st.sampled_from(Status), TIMES_MS), max_size=9, unique_by=lambda s: s[0]),
)
def test_steps_are_read_as_they_were_written(placed_ms: int, steps: list[tuple[Status, int]]) -> None:
    """Also where clocks differ, and a step is earlier than the order."""
    if steps:
        assert history(steps_text(steps, placed_ms), placed_ms) == tuple((s.value, at_ms) for s, at_ms in steps)


def test_steps_of_the_release_before_are_read_before_those_of_this_one() -> None:
    text = "queued@1000;processing@1013;pending@1013;awaiting_payment@1013;y20;d950;d951"
    assert history(text, 1_000) == (
        ("queued", 1_000),
        ("processing", 1_013),
        ("pending", 1_013),
        ("awaiting_payment", 1_013),
        ("processing_payment", 1_020),
        ("payment_failed", 1_950),
    )


def test_the_steps_of_an_order_that_was_unknown_for_a_day_fit_into_a_small_hash() -> None:
    day_ms = 86_400_000
    at_ms = [0, 900_000, 900_000, 900_000, 900_100, 905_000, day_ms]
    way = [Status.QUEUED, Status.PROCESSING, Status.PENDING, Status.AWAITING_PAYMENT, Status.PROCESSING_PAYMENT]
    steps = zip([*way, Status.NEEDS_RECONCILIATION, Status.CONFIRMED], at_ms, strict=True)
    assert len(steps_text(steps, 0)) <= LISTPACK_VALUE_BYTES


@given(product=st.integers(1, 2**31 - 1), quantity=st.integers(1, 2**31 - 1))
def test_a_key_record_names_its_order_and_body(product: int, quantity: int) -> None:
    order_id = new_order_id()
    record = key_record.record(order_id, product, quantity)
    assert key_record.parse(record) == (order_id, f"{product}:{quantity}")
    assert key_record.parse(f"{order_id} {product}:{quantity}") == (order_id, f"{product}:{quantity}")
    assert parse_order_id(key_record.parse(record)[0]) == order_id


def test_a_key_records_name_has_128_bits_of_the_hash() -> None:
    user, hashed = UserId(7), key_hash("a key")
    other = "0" if hashed[31] != "0" else "1"
    assert len(keys.key_record(user, hashed)) == len("key:{u7}:") + 22
    assert keys.key_record(user, hashed) == keys.key_record(user, hashed[:32] + "0" * 32)
    assert keys.key_record(user, hashed) != keys.key_record(user, hashed[:31] + other + hashed[32:])
    assert keys.key_record(user, hashed) != keys.key_record(UserId(8), hashed)
