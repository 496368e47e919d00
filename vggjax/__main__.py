"""`python -m vggjax`, the same as `vggjax`."""

import sys

from vggjax.cli.main import main

sys.exit(main())
