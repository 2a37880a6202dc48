"""Install Debian into a folder, with mmdebstrap."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from contrib.lab.errors import LabError
from contrib.lab.proc import need, run

RELEASE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LEFT_OUT = ("doc", "man", "info", "locale", "bash-completion", "lintian")


def install(
    target: Path,
    packages: Sequence[str],
    hooks: Sequence[str],
    variables: Mapping[str, str],
    *,
    seconds: float,
) -> None:
    """Install packages into a folder, or for the hooks alone if it is ``/dev/null``.

    :param hooks: mmdebstrap's options of that kind. These are lines of shell by design, with the
        root as ``$1``; they name whatever else they need by the variables.
    """
    if os.geteuid() != 0:
        raise LabError("building the lab needs root; run: sudo contrib/lab/lab build")
    need("mmdebstrap", "unshare")
    keyring = [f"--keyring={KEYRING}"] if KEYRING.exists() else []
    run(
        [
            # Namespaces of its own: what it mounts and starts ends with it, however it ends.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--components=main"),
            *keyring,
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT),
            # The hooks clear up after themselves.
            "--skip=cleanup/apt/lists,cleanup/reproducible",
            *hooks,
            *(RELEASE, target),
        ],
        timeout=seconds,
        env={**os.environ, **variables, "LC_ALL": "C.UTF-8"},
    )
