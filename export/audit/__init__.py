"""The audit: what a sanitized face still reveals, and to whom: `python -m export.audit MODEL`."""
