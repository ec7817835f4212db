"""The AsyncAPI document says of the log what the code does: the same topics, groups, events, headers and keys."""

from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import yaml
from hypothesis import given

from schemas import topics
from schemas.codec import TRACE_HEADER, VERSION_HEADER, encode
from schemas.events import (
    AnyEvent,
    Event,
    OrderPlaced,
    OrderStatusChanged,
    PaymentRequested,
    SaleControlled,
    StockChanged,
    StockOpened,
)
from schemas.generate import name_of
from schemas.topics import Topic
from streams.dead_letters import MAX_REASON_BYTES, DeadLetters
from tests.events import events

Json = dict[str, Any]
SCHEMAS = Path(topics.__file__).parent
DOCUMENT: Json = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))

CARRIED: dict[Topic, set[type[Event]]] = {
    topics.ORDERS: {OrderPlaced, StockOpened},
    topics.PAYMENTS: {PaymentRequested},
    topics.ORDER_STATUS: {OrderStatusChanged},
    topics.STOCK_CHANGES: {StockChanged},
    topics.SALE_ACTIONS: {SaleControlled},
    topics.DEAD_LETTERS: set(),
}


def resolved(node: Json) -> Json:
    """What a `$ref` within the document leads to, through as many as there are. A wrong one is a KeyError."""
    while str(node.get("$ref", "")).startswith("#/"):
        target = DOCUMENT
        for part in node["$ref"][2:].split("/"):
            target = target[part]
        node = target
    return node


def messages(topic: Topic) -> list[Json]:
    channel = next(channel for channel in DOCUMENT["channels"].values() if channel["address"] == topic.name)
    return [resolved(message) for message in channel["messages"].values()]


def test_every_reference_leads_somewhere() -> None:
    """Within the document, and to the files beside it."""

    def follow(node: Any) -> None:
        if isinstance(node, dict):
            if str(node.get("$ref", "")).startswith("./"):
                assert (SCHEMAS / node["$ref"]).is_file(), node
            resolved(node)
        for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            follow(item)

    assert DOCUMENT["asyncapi"].startswith("3.")
    follow(DOCUMENT)


def test_channels_are_the_topics() -> None:
    """Names, partitions and retention."""
    channels = {
        (binding["topic"], binding["partitions"], binding["topicConfiguration"]["retention.ms"])
        for channel in DOCUMENT["channels"].values()
        for binding in [channel["bindings"]["kafka"]]
        if binding["topic"] == channel["address"]
    }
    assert channels == {(topic.name, topic.partitions, topic.retention_ms) for topic in topics.ALL}
    assert len(DOCUMENT["channels"]) == len(topics.ALL)


def test_messages_are_the_events() -> None:
    """Each topic's events by name, each with the schema that is generated from it and the version header."""
    assert set().union(*CARRIED.values()) == set(get_args(AnyEvent))
    name, version = VERSION_HEADER
    for topic, carried in CARRIED.items():
        found = {message["name"]: message for message in messages(topic)}
        if topic is not topics.DEAD_LETTERS:
            assert found.keys() == {name_of(event) for event in carried}
        for event in carried:
            message = found[name_of(event)]
            assert message["payload"] == {"$ref": f"./{name_of(event)}.schema.json"}
            headers = resolved(message["headers"])
            assert headers["properties"].keys() == {name, TRACE_HEADER}
            assert headers["properties"][name] == {"const": version.decode()}
            assert headers["required"] == [name]
    assert len(DOCUMENT["components"]["messages"]) == len(get_args(AnyEvent)) + 1


@given(event=events)
def test_an_events_value_and_key_are_as_described(event: AnyEvent) -> None:
    """The payload named for it accepts its bytes; the key is its order id, or its product id where it has no order."""
    name = name_of(type(event))
    message = next(message for message in DOCUMENT["components"]["messages"].values() if message["name"] == name)
    payload = msgspec.json.decode((SCHEMAS / message["payload"]["$ref"]).read_bytes())
    jsonschema.validate(msgspec.json.decode(encode(event)), payload)
    key = resolved(message["bindings"]["kafka"]["key"])
    jsonschema.validate(str(getattr(event, "order_id", None) or event.product_id), key)
    assert (key == DOCUMENT["components"]["schemas"]["orderId"]) == hasattr(event, "order_id")


def test_receivers_are_the_consumer_groups() -> None:
    """Every group that commits offsets is named with the topic it reads, and no other."""
    groups = {
        group: resolved(operation["channel"])["address"]
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == "receive" and "bindings" in operation
        for group in operation["bindings"]["kafka"]["groupId"]["enum"]
    }
    assert groups == {group: topic.name for group, topic in topics.CONSUMED_BY.items()}
    for operation in DOCUMENT["operations"].values():
        channel = resolved(operation["channel"])
        for message in operation.get("messages", []):
            assert resolved(message) in [resolved(one) for one in channel["messages"].values()]


async def test_a_dead_letter_carries_the_described_headers() -> None:
    """Also when the reason is longer than its header may be."""
    sent: list[tuple[tuple[str, bytes], ...]] = []

    class Log:
        async def publish(self, topic: Topic, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> None:
            assert topic is topics.DEAD_LETTERS
            sent.append(headers)

    letters = DeadLetters(Log())  # type: ignore[arg-type]  # of a publisher it needs only this
    await letters.send("orders", 3, 17, None, b"\xff", "x" * (MAX_REASON_BYTES + 1))
    (message,) = messages(topics.DEAD_LETTERS)
    headers = resolved(message["headers"])
    jsonschema.validate({name: value.decode() for name, value in sent[0]}, headers)
    assert {name for name, _ in sent[0]} == set(headers["required"]) == headers["properties"].keys()
