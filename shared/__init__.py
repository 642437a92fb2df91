"""What both doors share: one signed distance field and all that surrounds it."""

import os

# Before torch loads OpenMP: threads that wait should sleep. Spinning, its default, makes a training step several times
# slower as soon as any other program wants a core, and gains nothing when none does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
