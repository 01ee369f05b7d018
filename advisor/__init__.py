"""What to do with a model: recommend, search, run."""

from advisor.api import recommend, run, search

__all__ = ["recommend", "run", "search"]
