"""Questions to the log: SQL, proofs, the database made again, the sale in pictures."""
