"""A host that stops while the bytes of a label are on their way: STATE POOL FLEET.

It says so, and goes on after a line of standard input.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.files import sharing_work

write = os.write


def paused(fd, content):
    count = write(fd, content)
    if content.startswith(f"\n{sys.argv[3]}-1-".encode()):
        print("written", flush=True)  # not yet at the server
        sys.stdin.readline()
    return count


os.write = paused
sharing_work.main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 1, 0)
