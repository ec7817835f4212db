"""Renders letters and results of redrives as text and as plain values."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from consumers.dead_letters.letters import Letter
from consumers.dead_letters.redrive import Fate


def as_row(letter: Letter) -> dict[str, Any]:
    return {
        "letter": letter.name,
        "at": _time(letter.at_ms),
        "topic": letter.topic,
        "partition": letter.source_partition,
        "offset": letter.source_offset,
        "key": letter.field("key"),
        "type": letter.field("type"),
        "bytes": len(letter.value),
        "reason": letter.reason,
        "redriven_at": _time(letter.redriven.at_ms) if letter.redriven else None,
        "redriven_by": letter.redriven.who if letter.redriven else None,
        "new_order_id": letter.redriven.new_order_id if letter.redriven else None,
        "came_back_from": letter.came_back_from,
        "order_ended": letter.ended,
        "resolved_at": _time(letter.resolved.at_ms) if letter.resolved else None,
        "resolved_by": letter.resolved.who if letter.resolved else None,
        "resolved_why": letter.resolved.why if letter.resolved else None,
    }


def as_page(letter: Letter) -> dict[str, Any]:
    """One letter in full; the value as JSON if it is JSON, else as text."""
    return {**as_row(letter), "cut": letter.cut, "value": _value(letter.value)}


def listing(letters: list[Letter]) -> str:
    if not letters:
        return "no dead letters need action (--all shows the others: redriven, resolved, order ended)"
    return "\n".join(_line(letter) for letter in letters)


def page(letter: Letter) -> str:
    shown = as_page(letter)
    value = shown.pop("value")
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    return "\n".join([*(f"{name:<13} {said}" for name, said in shown.items() if said is not None), "", text])


def fate(fate: Fate) -> str:
    new = f" -> {fate.new_order_id}" if fate.new_order_id else ""
    return f"{fate.letter:<8} {fate.done:<12} {fate.topic}: {fate.detail}{new}"


def comeback(letter: Letter) -> str:
    return f"{letter.came_back_from} came back as {letter.name}: {letter.reason}"


def _line(letter: Letter) -> str:
    source = f"{letter.topic}/{letter.source_partition}/{letter.source_offset}"
    reason = "".join(c if c.isprintable() else "?" for c in letter.reason)[:100]
    marks = "".join(f"  ({mark})" for mark in _marks(letter))
    return f"{letter.name:<8} {_time(letter.at_ms)}  {source:<18} {letter.field('type'):<18} {reason}{marks}"


def _marks(letter: Letter) -> Iterator[str]:
    if letter.came_back_from:
        yield f"came back: {letter.came_back_from} was redriven"
    if letter.redriven:
        yield "redriven"
    if letter.ended:
        yield f"its order is {letter.ended}"
    if letter.resolved:
        yield f"resolved: {letter.resolved.why}"


def _value(value: bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value.decode(errors="backslashreplace")


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
