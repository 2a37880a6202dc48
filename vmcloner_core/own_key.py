"""vmcloner's own ssh key of a user: it may log in to the clones that this user makes.

So a clone can be reached also by a user who has no key in ``~/.ssh``. Under sudo the key is root's.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from vmcloner_core import user_folders
from vmcloner_core.errors import BackendError
from vmcloner_core.records import new_host_key
from vmcloner_core.trusted_files import check_owner, make_folder

NAME = "id_ed25519"
COMMENT = "vmcloner"


def key_file() -> Path:
    """Return where the private key is. It has the public one in it (``ssh-keygen -y``)."""
    if os.geteuid() == 0 and "SUDO_USER" in os.environ:  # HOME may be the calling user's
        return Path(pwd.getpwuid(0).pw_dir, ".config/vmcloner", NAME)
    return user_folders.config() / NAME


def public_key() -> str | None:
    """Return the public key as a line in OpenSSH's format, None if there is no key yet."""
    from cryptography.hazmat.primitives import serialization

    file = key_file()
    try:
        content = file.read_bytes()
        check_owner(file, file.stat())
        key = serialization.load_ssh_private_key(content, password=None).public_key()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{file}: not a usable private key: {error}", hint="remove it; a new one is made"
        ) from error
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode()} {COMMENT}"


def made_key() -> str:
    """Return the public key; the key is made if there is none. Idempotent, also if killed.

    :raises BackendError: it can't be written or read.
    """
    known = public_key()
    if known is not None:
        return known
    file = key_file()
    private, public = new_host_key(COMMENT)
    draft = file.with_name(f".{NAME}-{os.getpid()}")
    try:
        make_folder(file.parent)
        draft.unlink(missing_ok=True)  # left by a killed process of that id
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(private)
                stream.flush()
                os.fsync(handle)
            file.hardlink_to(draft)  # never replaces one that is there
        except FileExistsError:  # another run made it meanwhile
            return made_key()
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"can't write the ssh key {file}: {error.strerror}") from error
    return public
