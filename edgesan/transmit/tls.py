"""TLS for `--out https://HOST:PORT`, from a certificate and a key in files."""

import ssl
from pathlib import Path
from typing import NoReturn

from edgesan.errors import SinkError


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later with this certificate.

    Raises:
        SinkError: a file cannot be read, is not PEM, or the two do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    names = f"tls_cert {certificate}" + (f" and tls_key {key}" if key else "")

    def refuse_passphrase() -> NoReturn:  # instead of asking for it on the terminal
        raise SinkError(
            f"the key of {names} is locked with a passphrase: write one without (openssl pkey -in … -out …)"
        )

    for file in (certificate, key or certificate):
        try:
            file.read_bytes()  # ssl does not say which of the two cannot be read
        except OSError as error:
            raise SinkError(f"cannot read {file}: {error.strerror}; name a PEM file that you may read") from error
    try:
        context.load_cert_chain(certificate, key, refuse_passphrase)
    except ssl.SSLError as error:
        reason = {"KEY_VALUES_MISMATCH": "the key does not belong to the certificate"}.get(
            error.reason, "one of them is damaged, or not a PEM file"
        )
        raise SinkError(
            f"cannot use {names}: {reason}; give the certificate (with its chain) and its key as PEM"
        ) from error
    return context
