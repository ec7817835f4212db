"""redis-py's client over the model of Redis: replies get lost, commands run late."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.redis.trips import NotSent, raise_first_error
from sale.books.scripts import DIGESTS

from .port import Port

RESERVE = DIGESTS["reserve"]


class RedisPort(Port):
    """redis-py's client, as far as we use it; also its own pipelines and our round trips."""

    async def round_trip(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.world.away("redis"):
            await self.travel()
            raise NotSent("redis is away")
        return await self.ask_all(commands)

    async def replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        replies = await self.round_trip(commands) if commands else []
        raise_first_error(replies)
        return replies

    def pipeline(self, transaction: bool = False) -> "_Pipeline":
        return _Pipeline(self)

    async def aclose(self) -> None:
        pass

    async def ask(self, *command: Any) -> Any:
        [reply] = await self.ask_all([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        await self.travel()
        process = self.world.redis.process
        replies: list[Any] = []
        for command in commands:
            if self.world.away("redis") or self.world.redis.process != process:
                raise RedisConnectionError("connection lost")
            if self.world.chance(self.world.chances.late_redis):  # it times out here, and runs there yet
                self.world.later(lambda command=command: self._execute(command))
                raise RedisTimeoutError("no reply in time")
            replies.append(self._execute(command))
            self.step(f"redis {command[0]}")
            if self.world.chance(0.1):
                await self.travel()
        if self.world.chance(self.world.chances.lost_reply):
            raise RedisTimeoutError("the reply is lost")
        await self.travel()
        return replies

    def _execute(self, command: tuple[Any, ...]) -> Any:
        if command[0] == "EVALSHA" and command[1] == RESERVE:
            self.world.striker.before_reservation(str(command[3 + command[2]]))
        try:
            return self.world.redis.execute(*command)
        except ResponseError as error:
            return error

    async def info(self, section: str) -> dict[str, str]:
        return _info(await self.ask("INFO", section))

    async def hscan(self, key: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        cursor_after, flat = await self.ask("HSCAN", key, cursor, "COUNT", count)
        return int(cursor_after), _pairs(flat)

    async def script_load(self, body: str) -> Any:
        return await self.ask("SCRIPT LOAD", body)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            return await self.ask(*_command(name, args, options))

        return call


class _Pipeline:
    connection: Any = None

    def __init__(self, port: RedisPort) -> None:
        self._port = port
        self._commands: list[tuple[Any, ...]] = []
        self._names: list[str] = []

    async def __aenter__(self) -> "_Pipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def execute_command(self, *command: Any) -> None:
        self._names.append("")
        self._commands.append(command)

    def __getattr__(self, name: str) -> Any:
        def queue(*args: Any, **options: Any) -> None:
            self._names.append(name)
            self._commands.append(_command(name, args, options))

        return queue

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        replies = await self._port.ask_all(self._commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, Exception):
                raise reply
        convert: Mapping[str, Callable[[Any], Any]] = {"hgetall": _pairs, "info": _info}
        return [convert.get(name, lambda reply: reply)(reply) for name, reply in zip(self._names, replies, strict=True)]


def _command(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
    match name:
        case "hmget":
            first = [args[1]] if isinstance(args[1], str) else args[1]
            return ("HMGET", args[0], *first, *args[2:])
        case "zadd":
            flags = [flag.upper() for flag, on in options.items() if on]
            return ("ZADD", args[0], *flags, *(part for member, score in args[1].items() for part in (score, member)))
        case "zrangebyscore":
            return ("ZRANGEBYSCORE", *args, "LIMIT", options["start"], options["num"])
        case _:
            return (name.upper(), *args)


def _info(reply: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in reply.decode().split("\r\n") if ":" in line)


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
