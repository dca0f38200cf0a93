"""The voter's errors, one tree::

VoterError
├── ConfigError    a configuration that cannot be used; names the key and its line
│   ├── CertificateError  a certificate or key that cannot be used
│   └── TokensError       a file of tokens that cannot be used
├── AddressError   a link or listening address that cannot be used
│   ├── ListenError     it is in use, or not allowed
│   └── InheritedError  a socket or variable that a service manager passed cannot be used
├── JournalError   the journal cannot be opened, trusted or written; names file and remedy
│   ├── JournalDamaged  what was on the disk is missing or altered
│   └── ForeignJournal  it, or a file of it, belongs elsewhere
└── RequestError   a request got no reply (``voter.client.errors``)
"""

from __future__ import annotations

from guests.errors import CodedError

__all__ = [
    "AddressError",
    "CertificateError",
    "ConfigError",
    "JournalError",
    "TokensError",
    "VoterError",
]


class VoterError(CodedError):
    """Base of all errors of the voter package."""


class ConfigError(VoterError):
    """A configuration that cannot be used."""

    error_code = "TV0201"


class CertificateError(ConfigError):
    """A certificate, a key or an authority that cannot be used."""

    error_code = "TV0973"


class TokensError(ConfigError):
    """A file of tokens that cannot be used."""

    error_code = "TV0974"


class AddressError(VoterError, ValueError):
    """An address that cannot be used."""

    error_code = "TV0202"


class ListenError(AddressError):
    """An address at which the voter cannot listen."""

    error_code = "TV0203"


class InheritedError(AddressError):
    """A socket or variable of a service manager that cannot be used."""

    error_code = "TV0205"


class JournalError(VoterError):
    """The journal cannot be opened, trusted or written.  Fatal: the voter ends."""

    error_code = "TV0210"


class JournalDamaged(JournalError):
    """Data that had reached the disk is missing or altered."""

    error_code = "TV0215"


class ForeignJournal(JournalError):
    """The journal, or a file in it, belongs to another one."""

    error_code = "TV0212"
