"""Analysis of the log: SQL, the proof of a product, the rebuilt database, a report with pictures."""
