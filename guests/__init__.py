"""What runs inside a guest: the frame format, the service interface, the shipped services, the
agent.

Standard library only (``guests.image``, which builds the image on the host, excepted), because
all of it is copied into the guest image.
"""

from __future__ import annotations

__all__: list[str] = []
