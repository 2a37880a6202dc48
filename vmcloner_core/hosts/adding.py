"""Add a machine to the settings, with this vmcloner installed on it."""

from __future__ import annotations

import re
from pathlib import Path

from vmcloner_core.errors import BackendError, Conflict, InvalidRequest
from vmcloner_core.hosts import installing
from vmcloner_core.model import RemoteHost
from vmcloner_core.settings import LOCAL, REMOTE_PYTHON, HostSettings, Settings, user_file
from vmcloner_core.trusted_files import check_file, make_folder, replacing


def add(config: Path | None, name: str, ssh: str | None, folder: str) -> tuple[RemoteHost, Path]:
    """Install vmcloner on a machine, and write its table into the settings. Idempotent.

    :param config: the settings file; None for the one that is used, or else the user's.
    :param ssh: destination for ssh(1); None if the settings have the host.
    :param folder: where to install, an absolute path there.
    :returns: the host, and the settings file that has it.
    :raises Conflict: the settings have another machine of that name.
    """
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", name) or name == LOCAL:
        raise InvalidRequest(f"not a name for a host: {name!r}", hint="like lab1")
    if not re.fullmatch("/[A-Za-z0-9._/-]{1,200}", folder):
        raise InvalidRequest(f"not an absolute path: {folder!r}")
    settings = Settings.load(config)
    known = {host.name: host for host in settings.remote}.get(name)
    if known is None and ssh is None:
        raise InvalidRequest(f"the settings have no host {name!r}", hint="say where ssh finds it")
    if known is not None and ssh not in (None, known.ssh):
        raise Conflict(
            f"host {name!r} is {known.ssh} in {settings.file}", hint="choose another name"
        )
    python = f"{folder}/bin/python"
    if known is not None and known.python != python:
        raise Conflict(
            f"host {name!r} has its Python at {known.python}",
            hint=f"--folder {Path(known.python).parent.parent}",
        )
    host = known or RemoteHost(name=name, ssh=str(ssh), python=python)
    HostSettings(ssh=host.ssh)  # checks the destination
    installing.install(host.ssh, folder)
    file = settings.file or config or user_file()
    if known is None:
        _write(file, host)
    return host, file


def _write(file: Path, host: RemoteHost) -> None:
    """Append a host's table to a settings file."""
    lines = [f"[hosts.{host.name}]", f'ssh = "{host.ssh}"']
    if host.python != REMOTE_PYTHON:
        lines.append(f'python = "{host.python}"')
    try:
        before, mode = b"", 0o644
        if file.exists():
            check_file(file)
            before, mode = file.read_bytes(), file.stat().st_mode & 0o777
        make_folder(file.parent)
        with replacing(file, mode) as stream:
            stream.write(before + b"\n" * bool(before) + "\n".join([*lines, ""]).encode())
    except OSError as error:
        raise BackendError(
            f"can't write {file}: {error.strerror}", hint=f"add to it: {' '.join(lines)}"
        ) from error
