"""The servers by name, for those who ask whether they answer."""

from enum import StrEnum


class Server(StrEnum):
    """What a command asks."""

    KAFKA = "Kafka"
    REDIS = "Redis"
    POSTGRES = "Postgres"
