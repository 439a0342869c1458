"""For `edgesan doctor`: `python -m edgesan.isolation sanitize|transmit` gives all of it up, and prints what holds."""

import json
import sys

from edgesan import isolation

if __name__ == "__main__":
    held = isolation.sanitize() if sys.argv[1:] == ["sanitize"] else isolation.transmit()
    print(json.dumps([isolation.plain(claim) for claim in held]))
