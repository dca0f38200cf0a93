"""The voter's log: one JSON object a line on standard error, or plain lines on a terminal.

It uses the standard library's logging.  structlog, which the other processes use, loads rich and
pygments where they are installed: 66 modules that would count as part of R_V.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec

__all__ = ["configure", "exception", "info", "warning"]

_logger = logging.getLogger("voter")


class _Lines(logging.Formatter):
    """Formats a record as a JSON object, or as plain text for a person."""

    def __init__(self, *, json: bool) -> None:
        super().__init__()
        self._json = json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{when}.{int(record.msecs):03d}Z"
        text = record.getMessage()
        if record.exc_info:
            fields = fields | {"error": self.formatException(record.exc_info)}
        if self._json:
            entry = {"time": stamp, "level": record.levelname.lower(), "event": text} | fields
            return msgspec.json.encode(entry, enc_hook=str).decode()
        return " ".join([stamp, text, *(f"{key}={value}" for key, value in fields.items())])


def configure(*, json: bool) -> None:
    """Log to standard error; libraries log warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(json=json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _logger.setLevel(logging.INFO)


def info(event: str, **fields: object) -> None:
    """Log one event with its fields."""
    _logger.info(event, extra={"fields": fields})


def warning(event: str, *, error_code: str, **fields: object) -> None:
    """Log an event that an operator has to act on, with the code that explains it."""
    _logger.warning(event, extra={"fields": {"error_code": error_code} | fields})


def exception(event: str, *, error_code: str, **fields: object) -> None:
    """Log an error, with its code and the exception that is being handled."""
    _logger.exception(event, extra={"fields": {"error_code": error_code} | fields})
