"""Redis in process: the commands our scripts and rooms use over dictionaries, and the very .lua files, run by Lua 5.1.

Proved equal to the real server in test_redis_model.py. Values are kept as latin-1 text, replies are bytes.
"""

import math
import re
from collections.abc import Callable, Mapping
from hashlib import sha1
from typing import Any

import msgspec
from lupa.lua51 import LuaRuntime, lua_type  # type: ignore[import-untyped]  # has no types
from redis.exceptions import NoScriptError, ResponseError

INSTEAD_OF: dict[str, str] = {}  # scripts by those that stand in for them: for planted bugs
Value = Any  # a string, a hash (dict of text) or a sorted set (_Scores)
Copy = tuple[dict[str, Value], dict[str, int]]  # data, and when what of it expires
LOOK_AGAIN_MS = 1_000  # lifetimes are hours
NOTHING: Copy = ({}, {})


class _Scores(dict[str, float]):
    """A sorted set; told apart from a hash by its class."""


def text(value: Any) -> str:
    """An argument as Redis stores it; Lua's numbers as %.17g, which writes whole ones without a point."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return f"{value:.17g}" if isinstance(value, float) else str(value)


def _copied(data: dict[str, Value]) -> dict[str, Value]:
    return {key: value if isinstance(value, str) else type(value)(value) for key, value in data.items()}


class RedisModel:
    """One server. `run` (its replication id) and `clock_ms` are given; `restart` forgets scripts, and data if told to."""

    def __init__(self, clock_ms: Callable[[], int], run: str = "a" * 40) -> None:
        self.clock_ms = clock_ms
        self.run = self.process = run
        self.data: dict[str, Value] = {}
        self.expires_ms: dict[str, int] = {}
        self._scripts: dict[str, str] = {}
        self._look_at_ms = 0

    def restart(self, run: str, copy: "Copy | None" = None) -> None:
        self.process = run
        self._scripts.clear()
        self.become(run, self.snapshot() if copy is None else copy)

    def become(self, run: str, copy: "Copy") -> None:
        """A primary with another's data, while the process and its connections live on."""
        self.run = run
        self.data, self.expires_ms = _copied(copy[0]), dict(copy[1])

    def snapshot(self) -> "Copy":
        return _copied(self.data), dict(self.expires_ms)

    def execute(self, *command: Any) -> Any:
        """One command as a client sends it, and its reply as redis-py gives it (protocol 2). Raises ResponseError."""
        name, *args = command
        match str(name).upper():
            case "EVALSHA":
                digest, count, *rest = args
                if digest not in self._scripts:
                    raise NoScriptError("No matching script")
                return self._eval(self._scripts[digest], int(count), rest)
            case "EVAL":
                body, count, *rest = args
                return self._eval(body, int(count), rest)
            case "SCRIPT LOAD":
                self._scripts[sha1(args[0].encode()).hexdigest()] = args[0]
                return sha1(args[0].encode()).hexdigest()
            case _:
                return _as_reply(self._command(str(name), [text(arg) for arg in args]))

    def _eval(self, body: str, count: int, rest: list[Any]) -> Any:
        args = [text(arg) for arg in rest]
        return _LUA.run(self, body, args[:count], args[count:])

    def _command(self, name: str, args: list[str]) -> Any:
        now_ms = self.clock_ms()
        if now_ms >= self._look_at_ms:
            self._expire(now_ms)
        method = getattr(self, f"_do_{name.lower()}", None)
        if method is None:
            raise ResponseError(f"the model does not know {name}")
        return method(*args)

    def _expire(self, now_ms: int) -> None:
        for key in [key for key, at in self.expires_ms.items() if at <= now_ms]:
            del self.expires_ms[key]
            self.data.pop(key, None)
        self._look_at_ms = now_ms + LOOK_AGAIN_MS

    def call(self, name: str, *args: Any) -> Any:
        """redis.call."""
        return self._command(name, [text(arg) for arg in args])

    def _hash(self, key: str) -> dict[str, str]:
        fields: dict[str, str] = self.data.setdefault(key, {})
        return fields

    def _drop_if_empty(self, key: str) -> None:
        if key in self.data and not self.data[key]:
            del self.data[key]

    def _do_info(self, section: str) -> str:
        if section == "memory":  # of which there is always enough here
            return "# Memory\r\nused_memory:0\r\nmaxmemory:0\r\n"
        return f"# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_replid:{self.run}\r\n"

    def _do_time(self) -> list[str]:
        now = self.clock_ms()
        return [str(now // 1000), str(now % 1000 * 1000)]

    def _do_hget(self, key: str, name: str) -> str | None:
        value: str | None = self.data.get(key, {}).get(name)
        return value

    def _do_hmget(self, key: str, *names: str) -> list[str | None]:
        fields = self.data.get(key, {})
        return [fields.get(name) for name in names]

    def _do_hgetall(self, key: str) -> list[str]:
        return [part for pair in self.data.get(key, {}).items() for part in pair]

    def _do_hset(self, key: str, *pairs: str) -> int:
        if not pairs or len(pairs) % 2:
            raise ResponseError("wrong number of arguments for 'hset' command")
        fields = self._hash(key)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(fields) - before

    def _do_hincrby(self, key: str, name: str, by: str) -> int:
        fields = self._hash(key)
        fields[name] = str(int(fields.get(name, "0")) + int(by))
        return int(fields[name])

    def _do_hdel(self, key: str, *names: str) -> int:
        fields = self.data.get(key, {})
        gone = sum(fields.pop(name, None) is not None for name in names)
        self._drop_if_empty(key)
        return gone

    def _do_hexists(self, key: str, name: str) -> int:
        return int(name in self.data.get(key, {}))

    def _do_hlen(self, key: str) -> int:
        return len(self.data.get(key, {}))

    def _do_hscan(self, key: str, *_: str) -> list[Any]:
        return ["0", self._do_hgetall(key)]

    def _do_zadd(self, key: str, *args: str) -> int:
        flags = [arg for arg in args if arg in ("NX", "XX", "LT")]
        pairs = args[len(flags) :]
        known = self.data.get(key, {})
        new = {}
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            if ("NX" in flags and member in known) or ("XX" in flags and member not in known):
                continue
            if "LT" in flags and float(score) >= known.get(member, math.inf):
                continue
            new[member] = float(score)
        added = len(new.keys() - known.keys())
        if new:
            self.data.setdefault(key, _Scores()).update(new)
        return added

    def _do_zrem(self, key: str, *members: str) -> int:
        return self._do_hdel(key, *members)

    def _do_zcard(self, key: str) -> int:
        return len(self.data.get(key, {}))

    def _do_zcount(self, key: str, low: str, high: str) -> int:
        return sum(float(low) <= score <= float(high) for score in self.data.get(key, {}).values())

    def _do_zrangebyscore(self, key: str, low: str, high: str, *limit: str) -> list[str]:
        scores = self.data.get(key, {})
        found = sorted((score, member) for member, score in scores.items() if float(low) <= score <= float(high))
        first, count = (int(limit[1]), int(limit[2])) if limit else (0, len(found))
        return [member for _, member in found[first : first + count]]

    def _do_get(self, key: str) -> str | None:
        return self.data.get(key)

    def _do_set(self, key: str, value: str, *flags: str) -> Any:
        if "NX" in flags and key in self.data:
            return None
        self.data[key] = value
        self.expires_ms.pop(key, None)
        if "PX" in flags:
            self.expires_ms[key] = self.clock_ms() + int(flags[flags.index("PX") + 1])
        return {"ok": "OK"}

    def _do_pexpire(self, key: str, lifetime_ms: str) -> int:
        if key not in self.data:
            return 0
        self.expires_ms[key] = self.clock_ms() + int(lifetime_ms)
        return 1

    def _do_pttl(self, key: str) -> int:
        if key not in self.data:
            return -2
        return self.expires_ms[key] - self.clock_ms() if key in self.expires_ms else -1

    def _do_exists(self, key: str) -> int:
        return int(key in self.data)

    def _do_del(self, *keys: str) -> int:
        for key in keys:
            self.expires_ms.pop(key, None)
        return sum(self.data.pop(key, None) is not None for key in keys)

    def _do_unlink(self, *keys: str) -> int:
        return self._do_del(*keys)

    def _do_rename(self, old: str, new: str) -> Any:
        if old not in self.data:
            raise ResponseError("no such key")
        self.data[new] = self.data.pop(old)
        self.expires_ms.pop(new, None)
        return {"ok": "OK"}


class _Lua:
    """One Lua for all servers of a process: scripts are compiled once, the server is named for each run."""

    def __init__(self) -> None:
        self._lua = LuaRuntime(encoding="latin-1", unpack_returned_tuples=False)
        self._compiled: dict[str, Any] = {}
        self._server: RedisModel | None = None
        self._redis = self._lua.table(call=self._call)
        self._cmsgpack = self._lua.table(unpack=self._unpack)

    def run(self, server: RedisModel, body: str, keys: list[str], args: list[str]) -> Any:
        body = INSTEAD_OF.get(body, body)
        script = self._compiled.get(body)
        if script is None:
            source = re.sub(r"\A#![^\n]*", "", body)
            script = self._lua.eval(f"function(KEYS, ARGV, redis, cmsgpack) {source}\nend")
            self._compiled[body] = script
        self._server = server
        table = self._lua.table_from
        return _of_lua(script(table(keys), table(args), self._redis, self._cmsgpack))

    def _call(self, name: str, *args: Any) -> Any:
        assert self._server is not None
        return self._to_lua(self._server.call(name, *args))

    def _to_lua(self, reply: Any) -> Any:
        if reply is None:
            return False
        if isinstance(reply, list):
            return self._lua.table_from([self._to_lua(item) for item in reply])
        if isinstance(reply, Mapping):
            return self._lua.table_from(reply)
        return reply

    def _unpack(self, packed: str) -> Any:
        return self._table(msgspec.msgpack.decode(packed.encode("latin-1")))

    def _table(self, value: Any) -> Any:
        if isinstance(value, list):
            return self._lua.table_from([self._table(item) for item in value])
        return value


def _of_lua(value: Any) -> Any:
    """A script's result by Redis' rules: tables end at their first nil, numbers are cut to integers."""
    if lua_type(value) == "table":
        if value["ok"] is not None:
            return value["ok"].encode("latin-1")
        items: list[Any] = []
        while (item := value[len(items) + 1]) is not None:
            items.append(_of_lua(item))
        return items
    if value is None or value is False:
        return None
    if value is True:
        return 1
    return value.encode("latin-1") if isinstance(value, str) else int(value)


def _as_reply(reply: Any) -> Any:
    if isinstance(reply, str):
        return reply.encode("latin-1")
    if isinstance(reply, list):
        return [_as_reply(item) for item in reply]
    return True if isinstance(reply, Mapping) else reply


_LUA = _Lua()
