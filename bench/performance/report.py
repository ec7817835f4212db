"""The results of a measurement as one value: stored as JSON, used by the page, the plots and the capacity model."""

import statistics
from pathlib import Path

import msgspec

from bench.micro import Micro
from bench.run_card import RunCard
from bench.tally import Percentiles, Result

from .figures import Figure


class CpuTable(msgspec.Struct):
    """CPU by role over `seconds` in which `accepted` orders were accepted and `ended` ended. ms per order: per ended one."""

    seconds: float
    accepted: int
    ended: int
    ms_per_order: dict[str, float]


class GeneratorNote(msgspec.Struct):
    """The generator's own load in one run. Near one core per process, or late, it has measured itself."""

    run: str
    offered_per_s: float
    answered_per_s: float
    late_p99_ms: float
    cpu_share: float  # of one core per process
    processes: int
    answers: dict[str, int]


class BooksNote(msgspec.Struct):
    run: str
    orders: int
    balance: bool
    problems: list[str]


class MembersPoint(msgspec.Struct):
    stage: str
    members: int
    share: float  # the limit of each member, of one core
    per_s: list[float]  # all repetitions

    @property
    def median_per_s(self) -> float:
        return statistics.median(self.per_s)


class BacklogPoint(msgspec.Struct):
    """`idle_ms_per_s`: CPU of all processes while the backlog is idle."""

    orders: int
    per_s: float
    ms_per_order: dict[str, float]
    idle_ms_per_s: float


class Sample(msgspec.Struct):
    """The counts of one run at one time since its start."""

    at_s: float
    accepted: int
    ended: int


class Report(msgspec.Struct):
    size: str  # quick, bench or full
    card: RunCard | None = None
    seconds: float = 0.0
    figures: dict[str, Figure] = {}
    latencies: dict[str, Percentiles] = {}  # ms
    cpu: dict[str, CpuTable] = {}
    notes: dict[str, float] = {}  # measured values without a goal
    members: list[MembersPoint] = []
    backlogs: list[BacklogPoint] = []
    burst: list[Sample] = []
    micro: list[Micro] = []
    limits: dict[str, float] = {}  # what each part can do alone, a second; see limits.py
    generators: list[GeneratorNote] = []
    books: list[BooksNote] = []
    failures: list[str] = []  # failed measurements with the reason

    def add(self, key: str, value: float) -> None:
        """Add the value of one repetition to a figure with a goal."""
        self.figures.setdefault(key, Figure([])).values.append(round(value, 3))

    def record_generator(self, run: str, result: Result, processes: int) -> None:
        late = result.generator_late
        self.generators.append(
            GeneratorNote(
                run=run,
                offered_per_s=result.offered_per_s,
                answered_per_s=result.answered_per_s,
                late_p99_ms=late.p99 if late else 0.0,
                cpu_share=result.generator_cpu_share,
                processes=processes,
                answers=result.answers,
            )
        )

    @property
    def sound(self) -> bool:
        """Whether everything was measured and all books balance."""
        return not self.failures and all(note.balance for note in self.books)


def read(file: Path) -> Report:
    return msgspec.json.decode(file.read_bytes(), type=Report)


def write(report: Report, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
