"""Limits that apply to buyers and operators."""

DEFAULT_MAX_QUANTITY = 10  # units per order, unless the product has its own limit
LONGEST_WHY = 500  # characters of an operator's reason
SLOWEST_ANSWER_MS = 5_000  # every answer of the gateway comes within this; a later one is a fault
