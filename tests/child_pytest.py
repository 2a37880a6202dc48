"""How tests start a pytest of its own, in another process."""

import sys

APART = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:pytest11.testinfra")
"""What it has no use for: hypothesis alone takes two thirds of its start."""


def argv(*words: object) -> list[str]:
    """Return the command."""
    return [sys.executable, "-m", "pytest", *APART, *map(str, words)]
