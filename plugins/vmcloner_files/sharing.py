"""Whether several hosts use a pool's folder, and whether its locks hold between them.

What is to be known of NFS (nfs(5)): with ``nolock`` or ``local_lock`` a client's locks hold on that
client only; with ``nocto`` it does not see what others have written before it locked a file. Its
appends are not atomic between clients, it has no write leases to tell who has a file open, and its
extended attributes depend on versions of both sides.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from vmcloner_core.errors import BackendError

NFS = frozenset({"nfs", "nfs4"})
UNKNOWN = frozenset({"9p", "afs", "cifs", "smb3", "virtiofs", "vboxsf"})
"""Network file systems whose locks hold on one host only, or are not known to hold between some."""


@attrs.frozen(kw_only=True)
class Mount:
    """Where a file system is mounted: its type, and the options of its mount and of itself."""

    point: Path
    kind: str
    options: frozenset[str]


def mount_of(path: Path, table: str | None = None) -> Mount | None:
    """Return the mount that holds a path, None if it can't be told.

    :param table: text like that of ``/proc/self/mountinfo``, see proc(5).
    """
    # Not by device number: on btrfs, stat(2) and mountinfo have different ones.
    try:
        text = Path("/proc/self/mountinfo").read_text() if table is None else table
    except OSError:
        return None
    place, best = Path(os.path.realpath(path)), None
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        where, what = mount.split(" "), source.split(" ")
        if len(where) < 6 or len(what) < 3:
            continue
        point = Path(where[4].encode().decode("unicode_escape"))  # a space is \040
        if place.is_relative_to(point) and (best is None or point.is_relative_to(best.point)):
            options = frozenset([*where[5].split(","), *what[2].split(",")])
            best = Mount(point=point, kind=what[0], options=options)
    return best


def is_shared(mount: Mount | None, wanted: bool | None) -> bool:
    """Tell whether several hosts use a pool: as is set, else those on NFS."""
    return wanted if wanted is not None else mount is not None and mount.kind in NFS


def check_locks(pool: object, mount: Mount | None) -> None:
    """Check that locks in a shared pool hold between its hosts, as far as its mount says.

    :raises BackendError: they don't; names the option and the way out.
    """
    if mount is None:
        return
    if mount.kind in UNKNOWN or mount.kind.startswith("fuse"):
        raise BackendError(
            f"{pool} is on {mount.kind}, whose locks are not known to hold between hosts",
            hint="put a shared pool on NFS; shared = false if one host only uses it",
        )
    if mount.kind not in NFS:
        return
    bad = [
        option
        for option in sorted(mount.options)
        if option in ("nolock", "nocto")
        or (option.startswith("local_lock=") and option != "local_lock=none")
    ]
    if bad:
        raise BackendError(
            f"{pool}: {mount.point} is mounted with {bad[0]}, so hosts that share it don't see "
            "each other's locks or files",
            hint="mount it without that, by NFSv4; shared = false if one host only uses it",
        )
