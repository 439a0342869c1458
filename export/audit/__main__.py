"""`python -m export.audit`."""

import sys

from export.audit.run import main

sys.exit(main())
