"""What both doors share: one signed distance field and all that surrounds it."""

import os

# Before torch loads OpenMP: a thread that waits for work should spin briefly, then sleep. Spinning for long, GNU's
# default, makes a training step several times slower as soon as any other program wants a core; not spinning at all
# costs a fifth when none does.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
