"""The journal: what the voter must not forget, on the disk before it counts.

Files of a journal's directory (0700, locked by the voter that uses it):

- ``identity.json`` (0600): node, vote policy, format, the secret that keys the history;
- ``segment-NUMBER``: entries in frames, in the order in which they happened (``journal.format``);
- ``checkpoint-PLACE``: a voted state and its base.  The last two are kept, with the segments that
  the older one needs;
- ``checkpoint-PLACE.bad``: the last checkpoint that was damaged, for an operator to inspect;
- ``history/``: older segments and checkpoints, if any are to be kept (``journal.history``);
- ``*.new``: incomplete; removed at the next start.

Promises.  With durability ``fsync`` an entry is on the disk once ``on_synced`` has named its
position.  With ``os`` the operating system has it: it is lost only if the kernel or the power
fails.  What was promised comes back at the next start, in order, and nothing that was not appended.
Where it cannot, ``open_journal`` raises JournalError, which names file, offset and remedy.

A **torn tail** is what was written and never synced: frames at the end without a whole copy, where
nothing proves that they were ever on the disk.  It is truncated, zeroed and logged.

*Flipped bits.*  Each frame is written twice, and both copies are synced before the reply is
released, so damage to one copy loses nothing and is logged.  Each frame and checkpoint also carries
the number of the last frame that was synced before it.  Damage to both copies of a frame that is
proved in this way is an error that names file and offset.

*Not covered:* damage to both copies of a frame that no later frame proves.  These are the frames of
the last sync or two under load.  There are none 50 ms after the last write, after a clean stop, or
once a voter has started on the journal.  Such a frame looks like one that a power loss has torn; it
is dropped and logged.  With ``os`` only full segments and checkpoints are synced, so the proof ends
there.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from voter import log
from voter.core.entries import FORMAT
from voter.errors import JournalError
from voter.journal.files import Directory, Files, JournalFile
from voter.journal.journal import Durability, Journal
from voter.journal.recovery import (
    RecoveredJournal,
    Segment,
    VoterIdentity,
    create_segment,
    read_identity,
    recover,
    segment_name,
    write_identity,
)

__all__ = ["Directory", "Files", "Journal", "JournalFile", "RecoveredJournal", "open_journal"]


async def open_journal(  # noqa: PLR0913 - by keyword
    files: Files,
    *,
    node: str,
    vote: str,
    durability: Durability,
    segment_size: int,
    random64: Callable[[], int],
    on_synced: Callable[[int], None],
    on_full: Callable[[bool, str], None],
    history: int = 0,
) -> tuple[Journal, RecoveredJournal]:
    """Start a journal in an empty directory, or continue the one that is there.

    ``history``: the most bytes of older segments and checkpoints that are kept.  Entries that are
    found are on the disk when this returns.  Raises JournalError, after which the directory is
    closed.
    """
    notes: list[str] = []

    def report(text: str) -> None:
        notes.append(text)
        log.info("journal", note=text)

    try:
        identity = read_identity(files, node, vote)
        if identity is None:
            found, file = await _begin(files, node, vote, segment_size, random64)
        else:
            found = await recover(files, identity, report, keep=history > 0)
            found.notes = notes
            if identity.format != FORMAT:
                found.identity = msgspec.structs.replace(identity, format=FORMAT)
                await write_identity(files, found.identity)
            # What a voter that was killed has written need not be on the disk yet.
            for segment in found.segments[:-1]:
                full = files.reopen(segment_name(segment.number), segment.at, segment.proved)
                await full.sync()
                full.close()
            last = found.segments[-1]
            file = files.reopen(segment_name(last.number), last.at, last.proved)
        spare: tuple[JournalFile, Segment] | None = None
        if found.spare is not None:
            name = segment_name(found.spare.number)
            spare = files.reopen(name, found.spare.at, 0), found.spare
            await spare[0].sync()
        journal = Journal(
            files,
            found,
            file,
            spare,
            durability=durability,
            segment_size=segment_size,
            on_synced=on_synced,
            on_full=on_full,
            history=history,
        )
        await journal.begin(found.copy)
    except OSError as error:
        files.close()
        raise JournalError(
            f"journal {files.where} cannot be opened: {error}", error_code="TV0210"
        ) from error
    except JournalError:
        files.close()
        raise
    return journal, found


async def _begin(
    files: Files, node: str, vote: str, segment_size: int, random64: Callable[[], int]
) -> tuple[RecoveredJournal, JournalFile]:
    """Start a journal: it exists as soon as its identity does."""
    for name in files.names():
        if name.startswith(("segment-", "identity")):
            await files.remove(name)
    secret = b"".join(random64().to_bytes(8) for _ in range(4))
    identity = VoterIdentity(format=FORMAT, node=node, vote=vote, secret=secret.hex())
    file, segment = await create_segment(files, identity, 1, segment_size)
    segment.first = 1
    await write_identity(files, identity)
    return RecoveredJournal(identity, segments=[segment]), file
