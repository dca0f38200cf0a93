"""Worker processes that run missions, on this host or on a Dask cluster."""

__all__: list[str] = []
