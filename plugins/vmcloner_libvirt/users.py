"""Users of this host, what the modes of files let them do, and which of them runs QEMU."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any, Self

import attrs


@attrs.frozen(kw_only=True)
class User:
    """A user with its groups."""

    name: str
    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, uid: int, gid: int | None = None) -> Self:
        """Return a user with its groups, like libvirt's virGetGroupList: also the given one."""
        more = () if gid is None else (gid,)
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(name=str(uid), uid=uid, gids=frozenset(more))
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return cls(name=entry.pw_name, uid=uid, gids=frozenset({*more, *groups}))

    def may(self, path: Path, wanted: int) -> bool:
        """Tell whether the file's mode grants ``wanted`` (of 7: 4 read, 2 write, 1 search)."""
        info = path.stat()
        mode = stat.S_IMODE(info.st_mode)
        if self.uid == 0:
            return True
        if info.st_uid == self.uid:
            mode >>= 6
        elif info.st_gid in self.gids:
            mode >>= 3
        return mode & wanted == wanted


def owner_of_qemu(capabilities: Any) -> tuple[int, int] | None:
    """Return the user and group that a daemon's security driver ``dac`` runs QEMU as.

    :param capabilities: the daemon's, as XML.
    :returns: None if they are the daemon's own.
    """
    for model in capabilities.iterfind("host/secmodel"):
        if model.findtext("model") == "dac" and model.find("baselabel") is not None:
            user, _, group = model.findtext("baselabel").partition(":")  # +UID:+GID
            return int(user.lstrip("+")), int(group.lstrip("+"))
    return None
