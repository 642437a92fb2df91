"""What a user can cause and mend: one line that names the file and the remedy, exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

DISK_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder, then continue with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder, then continue with --resume",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
}


class UserError(Exception):
    """Something the user can mend. The message is one line: `PATH: what is wrong; what to do`."""


def main_guard(command: Callable[[], int | None]) -> int:
    """Run a command body and turn what users can cause into one line on stderr.

    Returns the exit code: 0, the body's own, 2 for a `UserError`, an unusable disk or too little memory, 130 after
    Ctrl-C, and 1 for what nobody foresaw.
    With `--debug` among the arguments every exception keeps its traceback.
    """
    try:
        return command() or 0
    except UserError as error:
        return _report(str(error))
    except OSError as error:
        if error.errno not in DISK_REMEDIES:
            return _report(_unforeseen(error), 1)
        return _report(f"{error.filename or 'output'}: {DISK_REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        return _report("memory: there is too little; use smaller photos (--data.downscale), batches or resolutions")
    except Exception as error:
        return _report(_unforeseen(error), 1)


def _unforeseen(error: Exception) -> str:
    return f"{type(error).__name__}: {error}; this was not foreseen, please report it with the output of --debug"


def _report(message: str, code: int = 2) -> int:
    if "--debug" in sys.argv:
        raise
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
