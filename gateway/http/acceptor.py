"""Accepts connections from a socket that several workers share: a few at a time, then the other workers get a moment.

The server of an event loop accepts until the queue is empty. Then the first worker with a free CPU takes a whole burst of
connections and keeps them, while the others idle: of two workers one had all 64 connections.
"""

import asyncio
import socket
from collections.abc import Callable

from infra.logs import get_logger

BACKLOG = 4_096
ACCEPTS_A_TURN = 4  # one more after each turn that leaves some waiting: accepts 10,000 in 0.3 s
OTHERS_TURN_S = 0.002  # about as long as a runnable process waits for a CPU
PAUSE_S = 0.1  # when out of file descriptors or memory
log = get_logger()


class Acceptor:
    """From `start` until `close`, hands every accepted connection to a protocol made by `make`."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._sock = sock
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._most = ACCEPTS_A_TURN
        self._pause: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[object]] = set()  # a reference, so that no running task is garbage collected

    def start(self) -> None:
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Stop accepting. The other workers accept what waits in the socket's queue."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(self._most):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                self._most = ACCEPTS_A_TURN
                return
            except ConnectionError:
                continue  # the client went away before the accept
            except OSError as error:
                log.warning("cannot accept", error=str(error))
                self._wait(PAUSE_S)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connected)
        self._most += 1
        self._wait(OTHERS_TURN_S)

    def _connected(self, task: "asyncio.Task[object]") -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a connection was lost while it was accepted", error=repr(error))

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self._loop.add_reader, self._sock, self._accept)
