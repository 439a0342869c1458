"""`python -m edgesan`."""

import sys

from edgesan.cli import main

if __name__ == "__main__":
    sys.exit(main())
