"""Print the Debian packages that an environment uses, as a substitution variable for its package.

Run by the environment's own Python while the package is built. What lies in dist-packages belongs
to a Debian package, which sees to its own requirements; what lies in the environment is followed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

SYSTEM = Path("/usr/lib/python3/dist-packages")


def used(start: Requirement) -> Iterator[tuple[Requirement, metadata.Distribution]]:
    """Yield what is reached from a requirement and is the distribution's, with its metadata."""
    queue, seen = [start], set()
    while queue:
        requirement = queue.pop()
        found = metadata.distribution(requirement.name)
        if Path(str(found.locate_file(""))) == SYSTEM:
            yield requirement, found
        elif (key := (requirement.name, *sorted(requirement.extras))) not in seen:
            seen.add(key)
            queue += _requirements(found, requirement.extras)


def _requirements(found: metadata.Distribution, extras: set[str]) -> Iterator[Requirement]:
    for line in found.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _package(requirement: Requirement, found: metadata.Distribution) -> str:
    """Return a dependency on the Debian package, with the lower bound of what needs it."""
    metadata_file = next(p for p in SYSTEM.iterdir() if _is_metadata(p, found.metadata["Name"]))
    argv = ["dpkg-query", "--search", str(metadata_file)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    bounds = [part.version for part in requirement.specifier if part.operator in {">=", "~="}]
    version = f" (>= {bounds[0]})" if bounds else ""
    return done.stdout.partition(":")[0] + version


def _is_metadata(path: Path, name: str) -> bool:
    stem, _, kind = path.name.rpartition(".")
    return kind in {"dist-info", "egg-info"} and _plain(stem.partition("-")[0]) == _plain(name)


def _plain(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").lower()


def _python() -> Iterator[str]:
    """Yield dependencies on the Python that the environment is for."""
    major, minor = sys.version_info[:2]
    yield from (f"python3 (>= {major}.{minor}~)", f"python3 (<< {major}.{minor + 1})")
    yield "python3:any"  # whose interpreter runs the scripts


if __name__ == "__main__":
    packages = {_package(*pair) for pair in used(Requirement("vmcloner[cluster]"))}
    print(f"vendored:Depends={', '.join([*_python(), *sorted(packages)])}")
