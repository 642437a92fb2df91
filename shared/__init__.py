"""What both doors share: one signed distance field and all that surrounds it."""

import atexit
import os
import shutil
import tempfile

# Before torch loads OpenMP: a thread that waits for work should spin briefly, then sleep. Spinning for long, GNU's
# default, makes a training step several times slower as soon as any other program wants a core; not spinning at all
# costs a fifth when none does.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# Without a place for compiled kernels numba refuses to work: in an installation where nobody may write, give it one
# that lasts as long as the process.
if "NUMBA_CACHE_DIR" not in os.environ and not any(
    os.access(place, os.W_OK) for place in (os.path.dirname(__file__), os.path.expanduser("~"))
):
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="isopull-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)
