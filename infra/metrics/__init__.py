"""Metrics: their `definitions`, and how Prometheus gets them (`serving`, `vitals`)."""
