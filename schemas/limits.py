"""Limits that apply to buyers and operators."""

DEFAULT_MAX_QUANTITY = 10  # units per order, unless the product has its own limit
LONGEST_WHY = 500  # characters of an operator's reason
