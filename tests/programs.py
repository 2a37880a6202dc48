"""Which tests are skipped because a program is missing."""

import os
import shutil


def lacks(program: str) -> bool:
    """Tell whether what needs a program is skipped. In CI it isn't, but fails."""
    return shutil.which(program) is None and not os.environ.get("CI")
