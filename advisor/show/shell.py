"""The command group: every ending is one line and an exit code, and no traceback reaches a user."""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from advisor import interrupts
from advisor.show.console import clean
from knowledge.faults import first_line
from knowledge.files import disk_full
from knowledge.values import InputError, RunFailed

OK, OVER_BUDGET, BAD_INPUT, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
DISK_FULL = "the disk is full; finished stages are kept: free some space, and the same command goes on from there"
NO_MEMORY = "out of memory; finished stages are kept: ask for a smaller batch, sequence or model, or free some memory"
REPORT_HERE = "this is a fault in advisor; set ADVISOR_DEBUG=1 to see where, and report it with the command"


class Shell(click.Group):
    """A click group whose commands return their exit code; None is 0."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        extra.pop("standalone_mode", None)
        if not os.environ.get("ADVISOR_DEBUG"):
            warnings.simplefilter("ignore")  # of libraries about themselves; ours are results and are printed
        interrupts.watch()
        try:
            code = super().main(args, prog_name or "advisor", standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = OK
        except (click.Abort, KeyboardInterrupt):
            code = _say(INTERRUPTED, "interrupted: what was finished is kept; the same command goes on from there")
        except click.UsageError as error:
            code = _say(BAD_INPUT, usage_line(error))
        except click.ClickException as error:
            code = _say(BAD_INPUT, error.format_message())
        except InputError as error:
            code = _say(BAD_INPUT, str(error))
        except RunFailed as error:
            code = _say(FAILED, str(error))
        except Exception as error:
            code = _unforeseen(error)
        gc.freeze()  # the process ends: searching all of it for garbage once more would be a tenth of a short command
        sys.exit(code or OK)


def _unforeseen(error: Exception) -> int:
    """What no command has put into words: a name that the system does not take, no room left, or a fault of ours."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _say(BAD_INPUT, f"{error.filename}: the name is too long for a file; give a shorter one")
    if disk_full(error):
        return _say(FAILED, f"{DISK_FULL} ({first_line(error)})")
    if out_of_memory(error):
        return _say(FAILED, f"{NO_MEMORY} ({first_line(error)})")
    if os.environ.get("ADVISOR_DEBUG"):
        traceback.print_exc()
    return _say(FAILED, f"{type(error).__name__}: {error} ({REPORT_HERE})")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch and ONNX Runtime say so in words."""
    words = ("can't allocate memory", "out of memory", "Failed to allocate memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _say(code: int, message: str) -> int:
    click.echo(clean(f"advisor: {' '.join(message.split())}"), err=True)
    return code


def usage_line(error: click.UsageError) -> str:
    """Click's message in one line, with where to read on."""
    command = error.ctx.command_path if error.ctx else "advisor"
    return f"{error.format_message()} (see `{command} --help`)"
