"""The journal: what the voter must not forget, on the disk before it counts.

Files of a journal's directory (0700, locked by the voter that uses it):

- ``identity.json``: node, vote policy, format, the secret that keys the history; 0600;
- ``segment-NUMBER``: entries in frames, in the order they happened (``journal.format``);
- ``checkpoint-PLACE``: a voted state and its base; the last two are kept, and the segments that
  the older of them needs;
- ``checkpoint-PLACE.bad``: the last one that did not check, for whoever wants to know why;
- ``*.new``: not complete; removed at the next start.

Promises.  With durability ``fsync`` an entry is on the disk when ``on_synced`` has named its
position; with ``os`` it is with the operating system, and lost only if that or the power dies.
What was promised comes back at the next start, in order, and nothing that was not appended; where
it cannot, ``open_journal`` raises JournalError, which names file, offset and remedy.

A **torn tail** is what was written and never synced: frames at the end of which no copy is whole,
where nothing proves that they were ever on the disk.  It is truncated, zeroed and logged.

*Flipped bits.*  Each frame is there twice (``journal.format``), and both copies are synced before
the reply is released.  So damage to one copy loses nothing and is logged.  Frame and checkpoint
also carry the number of the last frame that was synced before them.  Damage to both copies of such
a proved frame is an error that names file and offset.

*What is not covered:* damage to both copies of a frame that no later frame proves.  These are the
frames of the last sync or two under load; there are none 50 ms after the last write, after a clean
end, or once a voter has started on the journal.  In that window a frame whose two copies were
damaged (a sector that holds both and reads back as zeros, say) looks like one that a power loss had
torn.  It is taken for torn, and logged.  With ``os`` only full segments and checkpoints are synced,
so what is proved ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from voter import log
from voter.core.entries import FORMAT, Base, Entry
from voter.errors import JournalError
from voter.journal.files import Directory, Files, JournalFile
from voter.journal.journal import Durability, Journal, Tail, create_segment, write_identity
from voter.journal.recovery import (
    RecoveredJournal,
    Segment,
    VoterIdentity,
    find,
    read_identity,
    segment_name,
)

__all__ = ["Directory", "JournalFile", "Files", "Journal", "RecoveryReport", "open_journal"]


class RecoveryReport(NamedTuple):
    """What the journal knows at the start."""

    base: Base
    state: bytes
    entries: list[Entry]  # after the base, in order
    secret: bytes
    service: str | None
    state_format: int | None
    notes: list[str]  # what was dropped, for status


async def open_journal(
    files: Files,
    *,
    node: str,
    vote: str,
    durability: Durability,
    segment_size: int,
    random64: Callable[[], int],
    on_synced: Callable[[int], None],
    on_full: Callable[[bool, str], None],
) -> tuple[Journal, RecoveryReport]:
    """Begin a journal in an empty directory, or go on with the one that is there.

    Entries that are found are on the disk when this returns.  Raises JournalError, after which
    the directory is given up.
    """
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        log.info("journal", said=text)

    try:
        identity = read_identity(files, node, vote)
        if identity is None:
            identity, found, file = await _begin(files, node, vote, segment_size, random64)
        else:
            found = await find(files, identity, tell)
            # What a voter that was killed left written need not be on the disk yet.
            for segment in found.segments[:-1]:
                name = segment_name(segment.number)
                full = files.reopen(name, segment.at, segment.proved)
                await full.sync()
                full.close()
            last = found.segments[-1]
            file = files.reopen(segment_name(last.number), last.at, last.proved)
            if found.copy:
                file.append(found.copy)
                last.at += len(found.copy)
            await file.sync()
        spare: tuple[JournalFile, Segment] | None = None
        if found.spare is not None:
            name = segment_name(found.spare.number)
            spare = files.reopen(name, found.spare.at, 0), found.spare
            await spare[0].sync()
        journal = Journal(
            files,
            identity,
            found,
            Tail(file, spare),
            durability=durability,
            segment_size=segment_size,
            on_synced=on_synced,
            on_full=on_full,
        )
        if found.frames:
            await journal.prove()
    except OSError as error:
        files.close()
        raise JournalError(f"journal {files.where} cannot be opened: {error}") from error
    except JournalError:
        files.close()
        raise
    secret = bytes.fromhex(identity.secret)
    return journal, RecoveryReport(
        found.base,
        found.state,
        found.entries,
        secret,
        identity.service,
        identity.state_format,
        notes,
    )


async def _begin(
    files: Files, node: str, vote: str, segment_size: int, random64: Callable[[], int]
) -> tuple[VoterIdentity, RecoveredJournal, JournalFile]:
    """Begin a journal: it exists from the moment that its identity does."""
    for name in files.names():
        if name.startswith(("segment-", "identity")):
            await files.remove(name)
    secret = b"".join(random64().to_bytes(8) for _ in range(4))
    identity = VoterIdentity(format=FORMAT, node=node, vote=vote, secret=secret.hex())
    file, segment = await create_segment(files, identity, 1, segment_size)
    segment.first = 1
    await write_identity(files, identity)
    return identity, RecoveredJournal(Base(), b"", [], [segment], None, 0, 0, b"", None), file
