"""Running a campaign: options, progress, interim results, status, replay, agreement of two runs."""

__all__: list[str] = []
