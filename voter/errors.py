"""The voter's errors, one tree::

VoterError
├── ConfigError    a configuration that cannot be used; names the key and its line
├── AddressError   a link or listening address that cannot be used
├── JournalError   the journal cannot be opened, trusted or written; names file and remedy
└── RequestError   a request got no reply (``voter.client.errors``)
"""

from __future__ import annotations

from guests.errors import CodedError

__all__ = ["AddressError", "ConfigError", "JournalError", "VoterError"]


class VoterError(CodedError):
    """Base of all errors of the voter package."""


class ConfigError(VoterError):
    """A configuration that cannot be used."""


class AddressError(VoterError, ValueError):
    """An address that cannot be used."""


class JournalError(VoterError):
    """The journal cannot be opened, trusted or written.  Fatal: the voter ends."""
