"""Measure what a sanitized face still tells, and to whom: `python -m export.audit MODEL`."""
