"""Data from a hosted teacher, within a budget: plan, ask, verify, store, export."""
