"""The Kafka client for reading and administration: consumers without auto-commit, group offsets, topics.

publisher.py writes.
"""

from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    TopicAlreadyExistsError,
    for_code,
)

from infra.settings import Settings
from schemas import topics
from schemas.topics import Topic

REQUEST_TIMEOUT_MS = 15_000
CLOSE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class FetchWait:
    """How long a broker delays the answer to a fetch: until it has `min_bytes`, at most `max_wait_ms`."""

    min_bytes: int
    max_wait_ms: int


NO_WAIT = FetchWait(1, 500)  # the first record after a pause is answered at once


def set_fetch_wait(consumer: Any, wait: FetchWait) -> None:
    """Change it from the consumer's next fetch on; aiokafka has no public way to do so.

    A fetch costs us and the broker as much as some twenty records. So at a high rate the broker gathers records, and at
    a low rate it answers at once.
    """
    fetcher = consumer._fetcher  # noqa: SLF001
    fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = wait.min_bytes, wait.max_wait_ms  # noqa: SLF001


def make_consumer(settings: Settings, *names: str, group: str | None = None, **overrides: Any) -> AIOKafkaConsumer:
    """A consumer of raw bytes that never commits by itself. It is not started yet."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": f"{settings.thrones_role}-{settings.thrones_member}",
        "group_id": group,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "session_timeout_ms": 10_000,
        "heartbeat_interval_ms": 3_000,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": 50,
        "metadata_max_age_ms": 30_000,
    }
    return AIOKafkaConsumer(*names, **(options | overrides))


async def create_topics(settings: Settings) -> None:
    """Create the missing topics of `topics.ALL`; existing ones are not changed. Raises KafkaError."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        await admin.start()
        reply = await admin.create_topics([new_topic(topic, settings) for topic in topics.ALL])
        for name, code, *_ in reply.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"topic {name}")
    except TopicAlreadyExistsError:
        return
    finally:
        await admin.close()


def new_topic(topic: Topic, settings: Settings) -> NewTopic:
    return NewTopic(
        name=topic.name,
        num_partitions=topic.partitions,
        replication_factor=settings.replication_factor,
        topic_configs={
            "retention.ms": str(topic.retention_ms),
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": "2" if settings.replication_factor > 2 else "1",
        },
    )
