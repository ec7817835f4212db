"""Reading requests, without a server: bodies, keys, addresses, times and the bytes of answers."""

import asyncio
import os
import threading
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.passwords import Passwords
from gateway.buying.catalogue import make_product, parse_product_id
from gateway.buying.purchases import accepted, decode_purchase, idempotency_key
from gateway.http.addresses import Addresses
from gateway.http.bodies import iso_ms
from gateway.http.problems import KINDS, Problem
from schemas.ids import ProductId, new_order_id
from schemas.money import MOST_CENTS


@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1), st.booleans())
def test_a_wish_is_read_however_it_is_spaced_and_ordered(product: int, quantity: int, swapped: bool) -> None:
    """Same members, same wish."""
    members = [("productId", product), ("quantity", quantity)]
    body = orjson.dumps(dict(reversed(members) if swapped else members), option=orjson.OPT_INDENT_2)
    assert decode_purchase(body) == (product, quantity)
    assert decode_purchase(b' {"productId" : %d } ' % product) == (product, 1)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_whatever_bytes_come_the_answer_is_a_wish_or_400(body: bytes) -> None:
    """Never another exception."""
    try:
        product, quantity = decode_purchase(body)
    except Problem as problem:
        code = problem.code
    else:
        code = "invalid_request" if product >= 1 and quantity >= 1 else "a wish for nothing"
    assert code == "invalid_request"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_only_whole_positive_numbers_are_quantities(value: Any) -> None:
    """JSON of any other kind is refused."""
    try:
        body = orjson.dumps({"productId": 1, "quantity": value})
    except TypeError:
        return  # an integer beyond 64 bits: orjson cannot write it
    if type(value) is int and 1 <= value < 2**31:
        assert decode_purchase(body) == (1, value)
    else:
        with pytest.raises(Problem):
            decode_purchase(body)


@given(st.text(min_size=1, max_size=300))
def test_keys_are_printable_ascii(key: str) -> None:
    """1 to 255 of them."""
    fine = len(key) <= 255 and all(" " <= c <= "~" for c in key)
    request = make_mocked_request("POST", "/", headers={"Idempotency-Key": key})
    if fine:
        assert idempotency_key(request) == key
    else:
        with pytest.raises(Problem):
            idempotency_key(request)


def test_an_acceptance_is_valid_json_for_any_name() -> None:
    """The bytes are put together around the order id; names may hold anything."""
    for name in ('Ned\'s "Ice"', "\ue000", "\\ud800", "Schwert ⚔", "</script>"):
        product = make_product(ProductId(7), name, 1_005, "USD")
        order_id = new_order_id()
        answer: Any = accepted(product, order_id)
        body = orjson.loads(answer.body)
        assert body["orderId"] == order_id
        assert body["checkStatusUrl"] == f"/order/{order_id}/status"
        assert body["product"] == {"id": 7, "name": name.replace("\ue000", ""), "price": "10.05"}


@pytest.mark.parametrize("text", ["0", "01", "-1", "+1", "1.0", "2147483648", "99999999999", "", "x", "１", "1 "])
def test_what_is_no_product_id_is_not_found(text: str) -> None:
    """One spelling a product."""
    with pytest.raises(Problem, match="not_found"):
        parse_product_id(text)


async def test_passwords_step_back_from_where_the_worker_stands() -> None:
    """A niced worker's threads are niced further: an ordinary user may not take niceness back, so a fixed one would fail."""

    def under(niceness: int) -> int:
        """In a thread of its own, which alone is niced: what the pool's threads would come to."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        passwords = Passwords(10)
        try:
            job = passwords._logins._pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return job.result(10)
        finally:
            passwords.close()

    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert await asyncio.to_thread(under, own) == min(19, own + 5)
    assert await asyncio.to_thread(under, min(19, own + 3)) == min(19, own + 8)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_forwarded_addresses_are_believed_from_trusted_proxies_only() -> None:
    """From the right, up to the first hop that is not ours; what a client writes itself is never reached."""
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": "1.1.1.1, 2.2.2.2, 10.0.0.2"})
    request = request.clone(remote="10.0.0.1")
    assert Addresses(()).of(request) == "10.0.0.1"
    assert Addresses(("10.0.0.0/8",)).of(request) == "2.2.2.2"
    assert Addresses(("10.0.0.1",)).of(request) == "10.0.0.2"
    broken = request.clone(remote="10.0.0.1", headers={"X-Forwarded-For": "' OR 1=1"})
    assert Addresses(("10.0.0.0/8",)).of(broken) == "10.0.0.1"


def test_an_ipv6_address_counts_as_the_network_that_one_customer_has() -> None:
    """Who has 2^64 of them is one; an IPv4 address is the same however it is written."""
    request = make_mocked_request("GET", "/")
    seen = {
        remote: Addresses(()).of(request.clone(remote=remote))
        for remote in (
            "2001:db8:1:2::1",
            "2001:db8:1:2:ffff::9",
            "2001:db8:1:3::1",
            "::ffff:192.0.2.1",
            "192.0.2.1",
            "x",
        )
    }
    assert list(seen.values()) == ["2001:db8:1:2::/64"] * 2 + ["2001:db8:1:3::/64", "192.0.2.1", "192.0.2.1", "unknown"]


def test_times_are_utc_with_milliseconds() -> None:
    """One spelling everywhere."""
    assert iso_ms(1_790_000_000_007) == "2026-09-21T14:13:20.007Z"
    assert iso_ms(0) == "1970-01-01T00:00:00.000Z"


def test_every_code_has_one_meaning() -> None:
    """503 and 429, and they alone, say when to come back; they and 504 may be repeated."""
    for code, kind in KINDS.items():
        assert (kind.status in (429, 503)) == (kind.retry_after_s is not None), code
        assert kind.retryable or kind.status not in (429, 503, 504), code
        answer = Problem(code).answer()
        assert ("Retry-After" in answer.headers) == (kind.status in (429, 503))
        assert orjson.loads(Problem(code).body())["error"] == kind.title


@pytest.mark.parametrize(("price_cents", "most"), [(999, 10), (MOST_CENTS // 3, 3), (MOST_CENTS, 1), (0, 10)])
def test_no_order_may_be_so_large_that_its_total_is_no_amount(price_cents: int, most: int) -> None:
    assert make_product(ProductId(1), "a castle", price_cents, "USD", max_quantity=10).max_quantity == most
