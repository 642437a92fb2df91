"""What a user can cause and mend: one line that names the file and the remedy, exit code 2."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable

DISK_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder (a run continues with --resume)",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder (a run continues with --resume)",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "permission denied; allow it, or choose a file you may read and a folder you may write to",
}
# What torch says, as a RuntimeError, when memory gives out on a CPU and on a GPU.
NO_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


class UserError(Exception):
    """Something the user can mend. The message is one line: `PATH: what is wrong; what to do`."""


def main_guard(command: Callable[[], int | None], debug: bool = False) -> int:
    """Run a command body and turn what users can cause into one line on stderr.

    Returns the exit code: 0, the body's own, 2 for a `UserError`, an unusable disk or too little memory, 130 after
    Ctrl-C, and 1 for what nobody foresaw.
    With `debug` every exception keeps its traceback.
    """
    try:
        return command() or 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        message, code = _explain(error)
    print(message, file=sys.stderr)
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, UserError):
        text, code = str(error), 2
    elif isinstance(error, OSError) and error.errno in DISK_REMEDIES:
        text, code = f"{error.filename or 'output'}: {DISK_REMEDIES[error.errno]}", 2
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        text, code = "memory: there is too little; use smaller photos (--data.downscale), batches or resolutions", 2
    else:
        unforeseen = "this was not foreseen, please report it with the output of --debug"
        text, code = f"{type(error).__name__}: {error}; {unforeseen}", 1
    return "error: " + " ".join(text.split()), code
