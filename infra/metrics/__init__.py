"""What every process counts of itself (`definitions`), and how that is told to Prometheus (`serving`, `vitals`)."""
