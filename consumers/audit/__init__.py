"""The books: what Redis, Postgres, the log and the provider's ledger say, and whether they agree."""
