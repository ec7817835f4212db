"""Results of rows, one JSON line each, appended to a file that is kept: what `docs/reliability.md` is made from."""

from pathlib import Path

import msgspec

FILE = Path(__file__).parent.parent.parent / "docs" / "reliability-results.jsonl"


class FaultLine(msgspec.Struct, frozen=True):
    """When it began, counted from the faults' start, how long it lasted, what it was."""

    at_s: float
    lasted_s: float
    what: str


class Measured(msgspec.Struct, frozen=True):
    """One figure; `met` is None where there was nothing to measure."""

    what: str
    value: float | None
    unit: str
    bound: str
    met: bool | None


class RowResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one row. `load_average` of the machine before and after: it may have had other work."""

    row: str
    seed: int
    at: str
    commit: str
    cores: int
    load_average: tuple[float, float]
    seconds: float
    offered_per_s: float
    accepted_per_s: float
    orders: int
    outcomes: dict[str, int]
    answers: dict[str, int]
    faults: list[FaultLine]
    figures: list[Measured]
    quiet_s: float
    violations: list[str]


def append(result: RowResult, file: Path = FILE) -> None:
    with file.open("ab") as out:
        out.write(msgspec.json.encode(result) + b"\n")


def read(file: Path = FILE) -> list[RowResult]:
    if not file.exists():
        return []
    return [msgspec.json.decode(line, type=RowResult) for line in file.read_bytes().splitlines() if line]


def show(result: RowResult) -> str:
    """For people, as a row ends."""
    lines = [
        f"{result.row} seed {result.seed}: {len(result.faults)} faults, "
        f"offered {result.offered_per_s:g}/s, accepted {result.accepted_per_s:g}/s, {result.orders} orders, "
        f"load average {result.load_average[0]:g} to {result.load_average[1]:g}",
        *(f"  {_figure(figure)}" for figure in result.figures),
        *(f"  VIOLATION {text}" for text in result.violations),
        f"  quiet after {result.quiet_s:g} s; {len(result.violations)} violations",
    ]
    return "\n".join(lines)


def _figure(figure: Measured) -> str:
    if figure.value is None:
        return f"{figure.what}: not measured ({figure.bound} {figure.unit})"
    verdict = "met" if figure.met else "MISSED"
    return f"{figure.what}: {figure.value:g} {figure.unit} ({figure.bound}) {verdict}"
