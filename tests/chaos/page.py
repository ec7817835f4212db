"""`python -m tests.chaos.page`: the table of docs/reliability.md anew, from the rows and the results that were kept."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .results import FILE, Measured, RowResult, read
from .rows import Row
from .table import ROWS

PAGE = FILE.with_name("reliability.md")
BEGIN, END = "<!-- made by `python -m tests.chaos.page` -->", "<!-- end of what is made -->"
HEAD = (
    "| Row | Fault | Books | Seeds | Violations | Wishes/s offered, accepted | Figures |\n|---|---|---|---|---|---|---|"
)
NAMED = 3  # violations of a row that are told in words


def render(page: str, rows: Sequence[Row], results: Sequence[RowResult]) -> str:
    """The page with the table, and what was missed, in its marked place. Raises ValueError where there is no such place."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{_made(rows, results)}\n\n{END}{after}"


def _made(rows: Sequence[Row], results: Sequence[RowResult]) -> str:
    by_row: defaultdict[str, list[RowResult]] = defaultdict(list)
    for result in results:
        by_row[result.row].append(result)
    lines = [_line(row, by_row[row.name]) for row in rows]
    total = sum(len(by_row[row.name]) for row in rows)
    violated = [result for row in rows for result in by_row[row.name] if result.violations]
    verdict = f"{total} runs of {len(rows)} rows; {len(violated)} with a violation."
    return "\n".join([verdict, "", HEAD, *lines, "", *_misses(rows, by_row)])


def _line(row: Row, results: Sequence[RowResult]) -> str:
    cells = [f"`{row.name}`", row.fault, row.holds]
    if not results:
        return "| " + " | ".join([*cells, "not run", "", "", ""]) + " |"
    seeds = ", ".join(str(result.seed) for result in results)
    violations = str(sum(len(result.violations) for result in results))
    rates = "; ".join(f"{result.offered_per_s:.0f}, {result.accepted_per_s:.0f}" for result in results)
    return "| " + " | ".join([*cells, seeds, violations, rates, _figures(results)]) + " |"


def _figures(results: Sequence[RowResult]) -> str:
    names = list(dict.fromkeys(figure.what for result in results for figure in result.figures))
    return "<br>".join(_figure([f for result in results for f in result.figures if f.what == name]) for name in names)


def _figure(measured: Sequence[Measured]) -> str:
    values = ", ".join("-" if figure.value is None else f"{figure.value:.4g}" for figure in measured)
    last = measured[-1]
    missed = " **missed**" if any(figure.met is False for figure in measured) else ""
    return f"{last.what}: {values} {last.unit} ({last.bound}){missed}"


def _misses(rows: Sequence[Row], by_row: dict[str, list[RowResult]]) -> list[str]:
    told = [f"- `{row.name}`: {row.not_reached}." for row in rows if row.not_reached]
    for row in rows:
        for result in by_row[row.name]:
            told += [
                _miss(result, f"{f.what} {f.value:.4g} {f.unit}, asked for {f.bound}")
                for f in result.figures
                if f.met is False and f.value is not None
            ]
            told += [_miss(result, text) for text in result.violations[:NAMED]]
    return ["Not reached, and violations:", "", *told] if told else []


def _miss(result: RowResult, what: str) -> str:
    low, high = result.load_average
    return f"- `{result.row}`, seed {result.seed} ({result.commit}, load average {low:g} to {high:g} on {result.cores} cores): {what}."


def main(file: Path = PAGE) -> None:
    file.write_text(render(file.read_text(), ROWS, read()))


if __name__ == "__main__":
    main()
