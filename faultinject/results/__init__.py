"""What campaigns found, as data: findings, their file, and measured points."""

__all__: list[str] = []
