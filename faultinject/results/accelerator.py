"""What a node's accelerator means for the validity of its results."""

from __future__ import annotations

__all__ = ["limits"]

TIMES = "The guests ran under TCG, QEMU's translator, so times are not those of hardware."
TRANSLATED = (
    "A flip in code that is already translated has no effect until that code is translated again, "
    "so fewer flips act than on hardware: R_M per dose, the mix of failures and the correlation "
    "under a common cause are numbers of TCG."
)


def limits(accel: str, *, flips: bool) -> str:
    """Return the limits of results under this accelerator ("" without any: KVM).

    ``accel``: as recorded, "tcg" or "kvm"; of several hosts, separated by commas.  ``flips``:
    whether bits were flipped.
    """
    if "tcg" not in {each.strip() for each in accel.split(",")}:
        return ""
    return f"{TIMES} {TRANSLATED}" if flips else TIMES
