"""The names of the servers."""

from enum import StrEnum


class Server(StrEnum):
    """A server that a command may need."""

    KAFKA = "Kafka"
    REDIS = "Redis"
    POSTGRES = "Postgres"
