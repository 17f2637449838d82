"""Batches: thousands of jobs through one target, with a ledger that survives a crash and a cap on what is spent."""
