"""`python -m pointrecon`, for instance under torchrun."""

import sys

from pointrecon.commands import main

sys.exit(main())
