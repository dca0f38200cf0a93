"""Predicate files of the experiment `replay`: each is loaded by its path, as a user's is."""

__all__: list[str] = []
