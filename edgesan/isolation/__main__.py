"""For `edgesan doctor`: `python -m edgesan.isolation PROCESS` gives up what that process does; prints what holds."""

import json
import sys

from edgesan import isolation

if __name__ == "__main__":
    processes = {"sanitize": isolation.sanitize, "transmit": isolation.transmit, "fetch": lambda: isolation.fetch(554)}
    held = processes[sys.argv[1]]()
    print(json.dumps([isolation.plain(claim) for claim in held]))
