"""TLS: contexts from files, and every way in which such a file cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.errors import raises
from tests.voter.certificates import Authority, Pair
from voter.tls import client_context, expiry, name_in, server_context

Spoil = Callable[[Authority, Pair], Pair]


def _other_key(authority: Authority, pair: Pair) -> Pair:
    return Pair(pair.certificate, authority.sign("other").key)


def _open_key(authority: Authority, pair: Pair) -> Pair:
    pair.key.chmod(0o644)
    return pair


def _not_pem(authority: Authority, pair: Pair) -> Pair:
    pair.certificate.write_bytes(b"\x30\x82 DER, perhaps")
    return pair


def _garbled(authority: Authority, pair: Pair) -> Pair:
    pair.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return pair


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_key, "does not belong to the certificate .*give the key"),
        (_open_key, "can be read by every user: `chmod o-rwx"),
        (_not_pem, "the certificate .*server.crt is not PEM"),
        (_garbled, "server.crt and its key .*server.key cannot be used"),
        (lambda a, p: Pair(p.certificate, p.key.parent / "none"), "private key .*none cannot be"),
        (lambda a, p: Pair(p.key.parent, p.key), "the certificate .* cannot be read: Is a dir"),
        (lambda a, p: a.sign("locked", password=b"secret"), "encrypted.*openssl pkey -in"),
    ],
)
def test_unusable_file_is_named_with_the_remedy(scratch: Path, spoil: Spoil, message: str) -> None:
    authority = Authority(scratch)
    pair = spoil(authority, authority.sign("server"))
    with raises("TV0973", message):
        server_context(*pair, None)


def test_client_ca_without_certificates_is_named(scratch: Path) -> None:
    pair = Authority(scratch).sign("server")
    with raises("TV0973", r"server.key holds no certificate"):
        server_context(*pair, pair.key)
    with raises("TV0973", r"ca\.pem cannot be read: No such file"):
        client_context(scratch / "ca.pem")


@pytest.mark.parametrize("days", [1, 10])
def test_expiry_is_that_of_the_certificate(scratch: Path, days: int) -> None:
    pair = Authority(scratch).sign("server", days=days)
    assert abs(expiry(*pair) - time.time() - days * 86_400) < 3600


@pytest.mark.parametrize(
    ("days", "client", "message"),
    [(-1, False, "server.crt: certificate has expired"), (1, True, "server.crt: .* purpose")],
)
def test_expiry_rejects_what_clients_reject(
    scratch: Path, days: int, client: bool, message: str
) -> None:
    pair = Authority(scratch).sign("server", days=days, client=client)
    with raises("TV0973", message):
        expiry(*pair)


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (((("commonName", "billing"),),), "billing"),
        (((("organizationName", "x"),), (("commonName", "b"),)), "b"),
        (((("commonName", "a\r\nb"),),), "'a\\r\\nb'"),
        (((("commonName", "n" * 100),),), "n" * 64),
        ((), "serial 0A"),
    ],
)
def test_name_of_a_certificate(subject: object, name: str) -> None:
    assert name_in({"subject": subject, "serialNumber": "0A"}) == name
