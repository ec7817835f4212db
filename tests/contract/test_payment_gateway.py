"""The mock payment gateway as its clients and the auditors see it: a real process with a memory on disk."""

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from infra.local.charge_ledger import CAPTURE, ChargeLedger, LedgerEntry, LedgerFull

from .conftest import GatewayProcess

pytestmark = pytest.mark.timeout(60)


def post(
    gateway: GatewayProcess, order: object, key: str | None, amount: object = "999.99", currency: str = "USD"
) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=5)
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
    body = msgspec.json.encode({"orderId": order, "amount": amount, "currency": currency})
    connection.request("POST", "/charges", body, headers)
    answer = connection.getresponse()
    said = msgspec.json.decode(answer.read(), type=dict[str, object])
    connection.close()
    return answer.status, said


def test_a_charge_is_answered_with_its_receipt_and_is_in_the_ledger(gateway: GatewayProcess, order: str) -> None:
    status, receipt = post(gateway, order, key=order)
    assert status == 200
    assert receipt == {"chargeId": receipt["chargeId"], "orderId": order, "amount": "999.99"}
    (capture,) = [capture for capture in gateway.ask("/ledger") if capture["orderId"] == order]
    assert capture | receipt == capture
    assert capture["currency"] == "USD"
    assert gateway.ask(f"/charges/{order}")["status"] == "captured"
    assert gateway.ask("/health")["captures"] >= 1


def test_a_decline_is_remembered_and_is_no_capture(gateway: GatewayProcess, order: str) -> None:
    gateway.weather(declined=1)
    assert post(gateway, order, key=order)[0] == 402
    gateway.weather()
    assert post(gateway, order, key=order)[0] == 402
    assert gateway.captures(order) == []
    assert gateway.ask(f"/charges/{order}")["status"] == "declined"


def test_every_decision_survives_kill_9(gateway: GatewayProcess, order: str) -> None:
    orders = [f"{order}-{n}" for n in range(20)]
    before = [post(gateway, each, key=each) for each in orders]
    gateway.end(signal.SIGKILL)
    gateway.start(declined=1)
    assert [post(gateway, each, key=each) for each in orders] == before
    assert gateway.captures(order) == orders


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_one_is_whole(gateway: GatewayProcess, order: str) -> None:
    post(gateway, f"{order}-1", key=f"{order}-1")
    gateway.end(signal.SIGKILL)
    with gateway.ledger.open("ab") as ledger:
        ledger.write(b'{"kind":"capture","key":"torn","ord')
    gateway.start()
    assert post(gateway, f"{order}-2", key=f"{order}-2")[0] == 200
    assert gateway.captures(order) == [f"{order}-1", f"{order}-2"]


def test_a_key_used_for_another_charge_is_refused(gateway: GatewayProcess, order: str) -> None:
    post(gateway, order, key=order)
    assert post(gateway, order, key=order, amount="1.00")[0] == 422
    assert post(gateway, order, key=order, currency="EUR")[0] == 422
    assert post(gateway, f"{order}-2", key=order)[0] == 422
    assert gateway.captures(order) == [order]


def test_a_new_key_for_the_same_order_is_captured_again_for_the_auditor_to_find(
    gateway: GatewayProcess, order: str
) -> None:
    post(gateway, order, key=f"{order}-1")
    post(gateway, order, key=f"{order}-2")
    assert gateway.captures(order) == [order, order]
    assert len(gateway.ask(f"/charges/{order}")["charges"]) == 2


def test_a_malformed_charge_is_refused(gateway: GatewayProcess, order: str) -> None:
    for key in (None, "", "k" * 256):
        assert post(gateway, order, key)[0] == 400
    for amount in ("", "0", "-1", "9.999", "nan", None, True):
        assert post(gateway, order, key=order, amount=amount)[0] == 400, amount
    assert post(gateway, order, key=order, currency="usd")[0] == 400
    assert post(gateway, "", key=order)[0] == 400
    assert post(gateway, 7, key=order)[0] == 400
    assert gateway.captures(order) == []


def test_bad_weather_answers_as_set(gateway: GatewayProcess, order: str) -> None:
    gateway.weather(unavailable=1)
    assert post(gateway, order, key=order)[0] == 503
    gateway.weather(rate_limited=1)
    assert post(gateway, order, key=order)[0] == 429
    gateway.weather(reset_after_capture=1)
    with pytest.raises(ConnectionError):
        post(gateway, order, key=order)
    assert gateway.captures(order) == [order]


def test_half_of_the_hangs_decide_first(gateway: GatewayProcess, order: str) -> None:
    gateway.weather(hang=1, seed=7)

    def hang(each: str) -> None:
        connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=1)
        body = msgspec.json.encode({"orderId": each, "amount": "999.99", "currency": "USD"})
        connection.request("POST", "/charges", body, {"Idempotency-Key": each})
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()

    hangs = [threading.Thread(target=hang, args=(f"{order}-{n}",)) for n in range(40)]
    for thread in hangs:
        thread.start()
    for thread in hangs:
        thread.join()
    assert 10 <= len(gateway.captures(order)) <= 30


def test_weather_is_merged_validated_and_shown(gateway: GatewayProcess) -> None:
    assert gateway.ask("/weather", "PUT", {"declined": 0.25})["declined"] == 0.25
    assert gateway.ask("/weather")["declined"] == 0.25
    refused: list[object] = [{"hang": 1.1}, {"hang": -0.1}, {"storm": 1}, {"hang": 0.6, "unavailable": 0.6}, [], "rain"]
    for nonsense in refused:
        with pytest.raises(OSError, match="400"):
            gateway.ask("/weather", "PUT", nonsense)
    assert gateway.ask("/weather")["hang"] == 0


def test_the_same_seed_brings_the_same_weather(gateway: GatewayProcess, order: str) -> None:
    def statuses(prefix: str) -> Iterator[int]:
        gateway.weather(unavailable=0.3, rate_limited=0.2, declined=0.2, seed=42)
        for n in range(30):
            yield post(gateway, order, key=f"{prefix}-{n}")[0]

    first = list(statuses(f"{order}-a"))
    assert list(statuses(f"{order}-b")) == first
    assert len(set(first)) == 4


def test_sigterm_ends_it_cleanly(gateway: GatewayProcess) -> None:
    assert gateway.end(signal.SIGTERM) == 0


def test_two_processes_cannot_keep_one_ledger(tmp_path: Path) -> None:
    ledger = ChargeLedger(tmp_path / "ledger.jsonl")
    with pytest.raises(BlockingIOError):
        ChargeLedger(tmp_path / "ledger.jsonl")
    ledger.close()
    ChargeLedger(tmp_path / "ledger.jsonl").close()


def test_a_full_disk_decides_nothing_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ChargeLedger(tmp_path / "ledger.jsonl")
    entry = LedgerEntry(CAPTURE, "key-1", "order-1", "ch_1", "9.99", "USD", 0)
    with monkeypatch.context() as full_disk:
        write = os.write
        full_disk.setattr(os, "write", lambda file, line: write(file, line[:7]))
        with pytest.raises(LedgerFull):
            ledger.record(entry)
    assert (ledger.captures, ledger.path.read_bytes()) == (0, b"")
    ledger.record(entry)
    assert ledger.captures_json().startswith(b'[{"kind":"capture"')
    ledger.close()
