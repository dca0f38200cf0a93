"""What runs inside a guest, and the host's tools for it.

In the guest run ``protocol`` (frames and messages), ``service`` and ``function`` (the interfaces
that a user's code implements), ``services`` (the shipped ones) and ``agent``.  They import the
standard library only, because the image build copies them into the guest.  On the host run
``image``, which builds the guest image, and ``check``, which finds non-determinism in a service.
"""

from __future__ import annotations

from guests import compiled

__all__: list[str] = []

compiled.load()
