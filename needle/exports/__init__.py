"""Exports: a checkpoint in the formats that other runtimes read."""
