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

    Returns the exit code: 0, the body's own, 2 for a `UserError` or an unusable disk, 130 after Ctrl-C.
    With `--debug` among the arguments every exception keeps its traceback.
    """
    try:
        return command() or 0
    except UserError as error:
        return _report(str(error))
    except OSError as error:
        if error.errno not in DISK_REMEDIES:
            raise
        return _report(f"{error.filename or 'output'}: {DISK_REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("interrupted", file=sys.stderr)
        return 130


def _report(message: str) -> int:
    if "--debug" in sys.argv:
        raise
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
