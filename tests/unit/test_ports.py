"""Ports are remembered, named when taken, and chosen where no outgoing connection can take them."""

import os
import socket
from pathlib import Path
from unittest.mock import patch

import pytest

from infra.local.config import load_config, make_config
from infra.local.stack import use_stack_env
from infra.supervision.ports import SERVER_PORTS, StackError, free_ports, is_free, listen


def test_a_taken_port_is_named_with_its_owner_and_another_is_offered() -> None:
    (port,) = free_ports(1)
    holder = listen(port)
    with holder, pytest.raises(StackError, match=rf"port {port} is in use by .*pid.*PORT=\d+"):
        listen(port)


def test_free_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port in SERVER_PORTS for port in ports)


def test_a_listener_can_be_handed_down() -> None:
    with listen(0) as listener:
        assert listener.get_inheritable()
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
            assert not is_free(listener.getsockname()[1])


def test_a_stack_is_remembered_with_its_secrets_readable_by_its_owner_only(tmp_path: Path) -> None:
    config = make_config(brokers=3)
    config.save(tmp_path)
    assert load_config(tmp_path) == config
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0


def test_ports_named_by_the_environment_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "25432")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:26379/0")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:29092")
    config = make_config(brokers=1)
    assert (config.postgres_port, config.redis_port, config.kafka_ports) == (25_432, 26_379, [29_092])


def test_an_unreadable_memory_is_said_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(StackError, match="make reset"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["x", "-1", "65536", "٨٠٨٠", "1e3"])
def test_a_port_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DB_PORT", text)
    with pytest.raises(StackError, match=r"DB_PORT=.* is not a number from 0 to 65535"):
        make_config(brokers=1)


def test_a_port_of_zero_means_the_one_that_the_stack_has(tmp_path: Path) -> None:
    """`PORT=0 make up` takes a free one; commands in the same shell must find it."""
    config = make_config(1)
    config.save(tmp_path)
    with patch.dict(os.environ, {"PORT": "0"}):
        assert use_stack_env(tmp_path)
        assert os.environ["PORT"] == str(config.port)
    with patch.dict(os.environ, {"PORT": "8123"}):
        assert use_stack_env(tmp_path)
        assert os.environ["PORT"] == "8123"
