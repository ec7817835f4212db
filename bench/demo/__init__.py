"""`make demo`: a whole sale seen from outside, then the books."""
