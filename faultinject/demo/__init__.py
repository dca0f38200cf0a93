"""``trivisor demo``: ``command`` is its command line, ``story`` what it shows and checks."""

__all__: list[str] = []
