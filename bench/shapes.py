"""The shapes of load tests: the number of users at any second. Pure; `locustfile.py` runs them."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class LoadStage:
    """`seconds` in which the number of users changes linearly to `users`; 0: at once."""

    seconds: float
    users: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Closed load: each user does one thing at a time, so a slow server gets fewer requests (docs/load-testing.md)."""

    name: str
    summary: str
    stages: tuple[LoadStage, ...]
    stock: int  # units on sale when `bench.load` makes the product
    until_sold_out: bool = False  # it ends early once the product is sold out for a while

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> int:
        return max(stage.users for stage in self.stages)

    def users_at(self, at_s: float) -> int | None:
        """The number of users `at_s` seconds after the start; None when it is over."""
        start_s = 0.0
        for before, stage in pairwise((LoadStage(0, 0), *self.stages)):
            passed_s = at_s - start_s
            if passed_s < stage.seconds:
                return round(before.users + (stage.users - before.users) * passed_s / stage.seconds)
            start_s += stage.seconds
        return None

    def scaled(self, time_scale: float, crowd: float) -> "Shape":
        """The same shape in `time_scale` of its time, with `crowd` of its users but at least one."""
        stages = tuple(
            LoadStage(stage.seconds * time_scale, max(1, round(stage.users * crowd)) if stage.users else 0)
            for stage in self.stages
        )
        return Shape(self.name, self.summary, stages, self.stock, self.until_sold_out)


REFERENCE = Shape(
    "reference",
    "the reference's: 0-50-150-300-100-0 users in 5 minutes",
    (LoadStage(30, 50), LoadStage(60, 150), LoadStage(120, 300), LoadStage(60, 100), LoadStage(30, 0)),
    stock=1_000,
)
SPIKE = Shape(
    "spike",
    "a quiet minute, 400 users within 2 s, quiet again",
    (LoadStage(0, 20), LoadStage(60, 20), LoadStage(2, 400), LoadStage(30, 400), LoadStage(5, 20), LoadStage(60, 20)),
    stock=2_000,
)
STEP = Shape(
    "step",
    "50 users more every 40 s, up to 300: where does it bend?",
    tuple(stage for users in range(50, 301, 50) for stage in (LoadStage(0, users), LoadStage(40, users))),
    stock=100_000,
)
SOAK = Shape(
    "soak",
    "100 users for half an hour: does anything grow?",
    (LoadStage(30, 100), LoadStage(1_800, 100), LoadStage(30, 0)),
    stock=500_000,
)
SELL_OUT = Shape(
    "sell-out",
    "300 users at the doors, until nothing is left (at most 2 minutes)",
    (LoadStage(0, 300), LoadStage(120, 300)),
    stock=1_000,
    until_sold_out=True,
)
SHAPES = {shape.name: shape for shape in (REFERENCE, SPIKE, STEP, SOAK, SELL_OUT)}
