"""`python -m flypg` is `flypg`."""

import sys

from flypg.main import main

sys.exit(main())
