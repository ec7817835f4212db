"""The connections of a load generator: keep-alive, at most a number at once.

Every failure says whether the request may have reached the server: `Unreachable` was not sent, `NoAnswer` may have been.
"""

import asyncio

from yarl import URL

from infra.keep_alive import Answer, BrokenOff, KeepAliveClient, NotConnected, NotHttp, TooLarge

IDLE_MAX_S = 4.0  # well below the server's keep-alive, so that no request meets a closing connection
CONNECT_TIMEOUT_S = 5.0
ANSWER_MAX_BYTES = 1 << 20


class Unreachable(Exception):
    """No connection could be made: the request was never sent."""


class NoAnswer(Exception):
    """The request was sent, but no complete answer came; `args[0]` is `timeout`, `reset` or `unreadable`."""


class Connections:
    """To one origin, at most `limit`; when all are busy, further requests wait."""

    def __init__(self, base_url: str, limit: int) -> None:
        self._client = KeepAliveClient(
            URL(base_url),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            idle_s=IDLE_MAX_S,
            body_max_bytes=ANSWER_MAX_BYTES,
            spread=True,
        )
        self._free = asyncio.Semaphore(limit)
        self.host = self._client.host
        self.close = self._client.close

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Raises Unreachable or NoAnswer."""
        async with self._free:
            try:
                return await self._client.send(request, timeout_s)
            except NotConnected as error:
                raise Unreachable(str(error)) from None
            except TimeoutError:
                raise NoAnswer("timeout") from None
            except (NotHttp, TooLarge):
                raise NoAnswer("unreadable") from None
            except BrokenOff:
                raise NoAnswer("reset") from None
