"""Whom an outlet trusts: the certificates of the system, or those of a file."""

import ssl

from edgesan.errors import ConfigError
from edgesan.targets import Target


def trusting(target: Target) -> ssl.SSLContext:
    """Return a context that verifies servers by the authorities of the option `ca`, or else by the system's.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    file = target.options.get("ca")
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate (PEM)"
        raise ConfigError(
            f"{target.name}: cannot read the authorities in {file}: {reason}; name a PEM file, ?ca=FILE"
        ) from error
