"""`python -m mvrecon`, for instance under torchrun."""

import sys

from mvrecon.commands import main

sys.exit(main())
