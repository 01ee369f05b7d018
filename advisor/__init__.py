"""What to do: from a model, a target and a quality budget to a searched, executed and verified plan.

>>> from advisor import recommend
>>> recommend(arch="rnn").chains[0].id
'int8_dynamic'
"""

from advisor.api import recommend, run, search

__all__ = ["recommend", "run", "search"]
