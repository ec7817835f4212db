"""A listening socket that several workers share in, connections out: each worker takes a few, then leaves the others a moment.

An event loop's own server accepts until nothing waits, so the worker that has a processor first takes a whole burst of
connections and keeps them, while the others idle: seen with 64 connections, all on one of two workers.
"""

import asyncio
import socket
from collections.abc import Callable

from infra.logs import get_logger

BACKLOG = 4_096
ACCEPTS_A_TURN = 4  # one more with each turn that leaves some waiting: 10,000 at once are taken in 0.3 s
OTHERS_TURN_S = 0.002  # about as long as a runnable process waits for a processor
PAUSE_S = 0.1  # without file descriptors or memory
log = get_logger()


class Acceptor:
    """Hands every accepted connection to a protocol of `make`, from `start` until `close`."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._sock = sock
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._most = ACCEPTS_A_TURN
        self._pause: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[object]] = set()  # kept so that none is collected while it runs

    def start(self) -> None:
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """What waits in the socket's queue is the other workers'."""
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
                continue  # gone before it was taken
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
            log.warning("a connection was lost as it was taken", error=repr(error))

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self._loop.add_reader, self._sock, self._accept)
