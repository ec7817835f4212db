"""Bounds that both buyers and operators meet."""

DEFAULT_MAX_QUANTITY = 10  # units one order may be of, where its product was given no other
LONGEST_WHY = 500  # characters of an operator's reason
