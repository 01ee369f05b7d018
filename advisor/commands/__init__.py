"""The command line's groups of commands: parse, call one function, show.

Importing allocates much and frees nothing: looking for garbage meanwhile would only cost time.
"""

import gc

gc.set_threshold(300_000)
