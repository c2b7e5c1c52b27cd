"""What can't be exported."""

from __future__ import annotations


class ExportError(ValueError):
    """A student that can't be exported; the message says why and what can."""
