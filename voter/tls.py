"""TLS for both ends of a client's connection: contexts of ``ssl`` from files in PEM form.

Version 1.2 is the oldest that is spoken, and nothing is renegotiated.  A file that cannot be used
is an error that names it: missing, unreadable, not PEM, an encrypted key, a key of another
certificate, a key that every user of the host can read.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voter.errors import CertificateError

__all__ = ["client_context", "expiry", "name_in", "server_context"]

LONGEST_NAME = 64
"""Characters of a common name that are used (X.520 allows no more)."""


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return the context of a server; with ``client_ca`` clients must have a certificate of it.

    Raises CertificateError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    _load_certificate(context, certificate, key)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: Path, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the context of a client that trusts the certificates in ``ca``, and checks the name.

    ``certificate`` and ``key`` are its own, if a server asks for one.  Raises CertificateError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    _load_ca(context, ca)
    if certificate is not None:
        _load_certificate(context, certificate, key or certificate)
    return context


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate with its chain, and its key, into a new context.

    Raises CertificateError; the context cannot be used then.
    """
    _check_pem(certificate, "certificate")
    mode = _check_pem(key, "private key")
    if mode & stat.S_IROTH:
        raise CertificateError(
            f"the private key {key} can be read by every user: `chmod o-rwx {key}`, and replace "
            "the key if others may have read it"
        )

    def refuse_password() -> str:
        raise CertificateError(
            f"the private key {key} is encrypted, and a service has nobody to ask for the "
            f"password: `openssl pkey -in {key} -out NEW.pem`, and let only its user read that"
        )

    try:
        context.load_cert_chain(certificate, key, refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"the private key {key} does not belong to the certificate {certificate}"
            raise CertificateError(
                f"{text}: give the key that the certificate was made for"
            ) from error
        raise CertificateError(
            f"the certificate {certificate} and its key {key} cannot be used: {_reason(error)}; "
            "write both as PEM, the server's certificate first, then its chain"
        ) from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    _check_pem(ca, "certificates of the authority")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise CertificateError(
            f"{ca} holds no certificate that can be used: {_reason(error)}; write it as PEM"
        ) from error


def _check_pem(path: Path, what: str) -> int:
    """Return the mode of a file that holds PEM.  Raises CertificateError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise CertificateError(f"the {what} {path} is not a file")
            found = b"-----BEGIN " in file.read(1 << 20)
    except OSError as error:
        raise CertificateError(
            f"the {what} {path} cannot be read: {error.strerror}; the voter's user needs access"
        ) from error
    if not found:
        raise CertificateError(f"the {what} {path} is not PEM: it has no line -----BEGIN ...-----")
    return mode


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def expiry(certificate: Path, key: Path) -> float:
    """Return when a server's certificate expires, in seconds since 1970.

    It is shown to a client in memory that trusts just this certificate, so what clients would
    refuse is found too: a certificate that has expired, is not valid yet or is not for servers.
    Raises CertificateError.
    """
    server, client = server_context(certificate, key, None), client_context(certificate)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server)
    while True:
        try:
            ours.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            raise CertificateError(
                f"clients will reject the certificate {certificate}: {error.verify_message}; "
                "replace it by one for servers that is valid now"
            ) from error
        try:
            theirs.do_handshake()
        except ssl.SSLWantReadError:
            pass
    found = ours.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(found["notAfter"]))


def name_in(certificate: Mapping[str, Any]) -> str:
    """Return the common name in a certificate that was verified, else its serial number."""
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName" and value:
                text = str(value)[:LONGEST_NAME]
                return text if text.isprintable() else ascii(text)
    return f"serial {certificate.get('serialNumber', '')}"
