"""Free ports, and listening sockets that workers inherit."""

import random
import socket

import psutil

from infra.errors import CommandFailed

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (from 32768): an outgoing connection cannot take the port of a server that restarts.
SERVER_PORTS = range(20_000, 32_000)


class StackError(CommandFailed):
    """The stack cannot continue; the text says why and what to do."""


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports without a listener."""
    chosen: list[int] = []
    for port in random.sample(SERVER_PORTS, len(SERVER_PORTS)):
        if is_free(port):
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise StackError(f"no {count} free ports between {SERVER_PORTS.start} and {SERVER_PORTS.stop}")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a port in TIME_WAIT is free, one with a listener is not
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def owner_of(port: int) -> str:
    """The process that listens on a port, as text for people. Other users' processes are not always visible."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # no permission, or it has just ended
    return "a process that cannot be seen from here"


def listen(port: int, host: str = LOOPBACK, backlog: int = 4_096) -> socket.socket:
    """A listening socket for the gateway workers. Raises StackError, which names the port's owner and a free port."""
    listener = bind(port, host)
    listener.listen(backlog)
    return listener


def bind(port: int, host: str = LOOPBACK) -> socket.socket:
    """Like `listen`, but connections are refused until the first worker listens on the socket."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port or free_ports(1)[0]))
    except OSError as error:
        listener.close()
        other = next(
            (p for p in range(port + 1, port + 200) if is_free(p, host)),
            free_ports(1)[0],
        )
        raise StackError(f"port {port} is in use by {owner_of(port)}; try PORT={other}") from error
    listener.setblocking(False)
    listener.set_inheritable(True)
    return listener
