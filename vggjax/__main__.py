"""`python -m vggjax`, the same as `vggjax`."""

import sys

from vggjax.cli import main

sys.exit(main())
