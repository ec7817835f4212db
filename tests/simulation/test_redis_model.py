"""The model of Redis and the real server are given the same script calls: the same replies, the same data afterwards."""

import random
import re
import time
from typing import Any

import msgspec

from infra.redis.client import Redis
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS

from .redis_model import RedisModel

PRODUCT = "7"
STOCK, HELD, DUE, BUYERS = (f"{name}:{{p{PRODUCT}}}" for name in ("stock", "held", "due", "buyers"))
IN_FORCE = (STOCK, HELD, DUE, BUYERS)
DECLINED = f"declined:{{p{PRODUCT}}}"
DECLINES_MS = 2 * 10**12  # what is left of it is masked as the times are
TIME = re.compile(rb"\b1\d{12}\b")  # milliseconds: the two were asked one after the other
CALLS = 600


def _masked(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_masked(item) for item in reply]
    if isinstance(reply, int) and reply > 10**12:
        return "time"
    return TIME.sub(b"time", reply) if isinstance(reply, bytes) else reply


class _Calls:
    """Script calls at random, most of them sensible."""

    def __init__(self, seed: int, run: str) -> None:
        self._random = random.Random(seed)
        self._run = run
        self._epoch = 0
        self._ids = [f"0192f000-0000-7000-8000-{n:012x}" for n in range(40)]

    def draw(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        kinds = (self._reserve, self._settle, self._project, self._rebuild_chunk, self._open, self._close)
        return self._random.choices(kinds, (8, 6, 5, 2, 3, 1))[0]()

    def opening(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        self._epoch += 1
        return self._open()

    def _reserve(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        id_, user, quantity = self._random.choice(self._ids), self._random.randint(1, 5), self._random.randint(1, 3)
        own = f"order:{id_}"
        key = f"key:{{u{user}}}:{self._random.randint(1, 4)}" if self._random.random() < 0.5 else own
        longer = own if key == own else f"key:{{u{user}}}:longer {self._random.randint(1, 4)}"
        head = f'{{"type":"order.placed","order_id":"{id_}"'
        body = f"{PRODUCT}:{quantity}"
        again = self._random.choice(("", 1_800_000_000_000))
        args = (id_, user, quantity, body, head, 999, "USD", 60_000, 2_000, PRODUCT, again, *self._seen())
        return (
            "reserve",
            (*IN_FORCE, own, key, f"unstored:{{u{user}}}", longer, DECLINED),
            (*args, id_[-4:], self._random.choice((0, 1))),
        )

    def _settle(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        declined = self._random.choice(("", DECLINES_MS))
        args = (self._random.choice(self._ids), self._random.choice("sr"), 2_000, *self._seen(), declined)
        return "settle", (*IN_FORCE, DECLINED), args

    def _seen(self) -> tuple[int, int]:
        """Newer than the books, now and then."""
        return self._epoch - 1 + (self._random.random() < 0.02), self._random.randint(0, 2)

    def _project(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        id_, rank = self._random.choice(self._ids), self._random.choice((20, 40, 100))
        version = f"{self._epoch} {self._random.randint(1, 60)}" if rank == 100 else ""
        lifetime = 60_000 if rank == 100 else 120_000
        fixed = (3, PRODUCT, 2, 999, "USD", 1_800_000_000_000)
        args = (id_, "status", rank, 1_800_000_000_001, "a1", version, lifetime, *fixed)
        return "project", (f"order:{id_}", HELD, DUE, "unstored:{u3}"), args

    def _rebuild_chunk(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        self._epoch += 1
        orders = [(id_, f"h 1 1 1 1 3 1800000000000 {{{id_}", 1_800_000_000_000) for id_ in self._ids[:3]]
        unstored = ("unstored:{u3}", 60_000)
        models = [
            (f"order:{id_}", 10, ("status", "queued", "user", "3", "body", "7:1"), unstored) for id_ in self._ids[:3]
        ]
        chunk = msgspec.msgpack.encode((orders, [(3, 3)], [("key:{u3}:1", "value", 60_000)], models))
        return "prepare", tuple(f"{key}:new:{self._epoch}" for key in IN_FORCE[1:]), (chunk,)

    def _open(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        run = self._run if self._random.random() < 0.9 else "b" * 40
        books = ("state", "open", "initial", 30, "available", 30, "held", 0, "sold", 0, "max_held", 20)
        limit = ("per_user_limit", 8) if self._random.random() < 0.5 else ()
        prepared = tuple(f"{key}:new:{self._epoch}" for key in IN_FORCE[1:])
        return "open", (*IN_FORCE, *prepared), (run, self._epoch, *books, *limit)

    def _close(self) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        return "close", (STOCK,), (self._random.choice(("", str(self._epoch), str(self._epoch + 1))),)


async def test_the_model_answers_and_keeps_what_the_server_does(redis: Redis) -> None:
    run = await present_run(redis)
    for seed in range(3):
        await redis.flushdb()
        model = RedisModel(lambda: time.time_ns() // 1_000_000, run)
        calls = _Calls(seed, run)
        answers: set[str] = set()
        for call in [calls.opening(), *(calls.draw() for _ in range(CALLS))]:
            script, script_keys, args = call
            command = (SCRIPTS[script], len(script_keys), *script_keys, *args)
            told, tells = await redis.eval(*command), model.execute("EVAL", *command)
            assert _masked(tells) == _masked(told), (seed, call)
            answers.add(f"{script} {told[0] if isinstance(told, list) else told}")
        assert len(answers) > 12, answers  # the calls did lead everywhere
        assert await _data_of(redis) == _data_in(model)


async def _data_of(redis: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key in await redis.keys("*"):
        match (await redis.type(key)).decode():
            case "hash":
                data[key.decode()] = {
                    name.decode(): _masked(value) for name, value in (await redis.hgetall(key)).items()
                }
            case "zset":
                data[key.decode()] = {member.decode() for member in await redis.zrange(key, 0, -1)}
            case _:
                data[key.decode()] = _masked(await redis.get(key))
    return data


def _data_in(model: RedisModel) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in model.data.items():
        if isinstance(value, str):
            data[key] = _masked(value.encode())
        elif key.startswith(("due", "unstored")):
            data[key] = set(value)
        else:
            data[key] = {name: _masked(text.encode()) for name, text in value.items()}
    return data
