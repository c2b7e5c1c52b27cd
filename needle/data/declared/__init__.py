"""Requests for declared tools: a declaration is read, and asked for as people do."""
