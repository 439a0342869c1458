"""A certificate for WHIP: the peers of WebRTC know each other's by its fingerprint, which HTTPS carries.

FFmpeg would make an RSA one itself, which peers refuse that speak ECDSA alone, as aiortc does.
"""

import datetime
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

# No clock is asked: nobody checks these, and a board may not know the time yet.
BEGIN, END = datetime.datetime(2020, 1, 1), datetime.datetime(2100, 1, 1)


def make() -> tuple[str, str]:
    """Return the paths of a new certificate and its key, as PEM, in the memory of this process (memfd_create(2))."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgesan")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(BEGIN).not_valid_after(END)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _in_memory("certificate", certificate), _in_memory("key", secret)


def _in_memory(name: str, content: bytes) -> str:
    descriptor = os.memfd_create(name)  # stays open as long as the process
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"
