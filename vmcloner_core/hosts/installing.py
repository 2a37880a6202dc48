"""Install this vmcloner on another machine, over ssh: what is installed here is sent there.

Nothing is downloaded, so it also works for a machine without a way out. The files of vmcloner and
of what it needs go into a virtual environment of their own there. They fit only the same minor
version of Python on the same kind of processor, which is checked before anything is written.
"""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from vmcloner_core.catalog import shipped
from vmcloner_core.errors import BackendError, DeadlineExceeded, shown

DISTRIBUTION = "vmcloner"
EXTRAS = ("libvirt", "cluster", "dask")
WITHIN = 300.0
"""Seconds for sending and unpacking: some 40 MiB."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)")
RECEIVER = """
import os, platform, shutil, subprocess, sys, tarfile
folder, version, machine = sys.argv[1:]
mine = "%d.%d" % sys.version_info[:2]
if (mine, platform.machine()) != (version, machine):
    there = "Python %s on %s is there" % (mine, platform.machine())
    sys.exit("%s; needed is %s on %s, as here" % (there, version, machine))
draft = folder + ".new"
shutil.rmtree(draft, ignore_errors=True)
subprocess.run([sys.executable, "-m", "venv", "--without-pip", draft], check=True)
place = "%s/lib/python%s/site-packages" % (draft, mine)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
    filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
    archive.extractall(place, **filters)
with open(draft + "/bin/vmcloner", "w") as script:
    print("#!%s/bin/python" % folder, "import sys", sep="\\n", file=script)
    print("from vmcloner_core.cli.__main__ import main", file=script)
    print("sys.exit(main())", file=script)
os.chmod(draft + "/bin/vmcloner", 0o755)
subprocess.run([draft + "/bin/python", "-I", "-c", "import vmcloner_core, libvirt"], check=True)
shutil.rmtree(folder + ".old", ignore_errors=True)
if os.path.lexists(folder):
    os.rename(folder, folder + ".old")
os.rename(draft, folder)
shutil.rmtree(folder + ".old", ignore_errors=True)
"""


def install(ssh: str, folder: str) -> None:
    """Install this vmcloner in a folder of another machine; what is there is replaced. Idempotent.

    :param ssh: destination for ssh(1). :param folder: an absolute path there.
    :raises BackendError: ssh fails, or the machine's Python is another; says which.
    """
    words = ["python3", "-I", "-c", RECEIVER, folder, _python(), platform.machine()]
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "--", ssh]
    argv.append(shlex.join(words))
    try:
        done = subprocess.run(
            argv, input=packed(), capture_output=True, timeout=WITHIN, check=False
        )
    except FileNotFoundError as error:
        raise BackendError("ssh isn't installed", hint="install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(f"{ssh}: vmcloner was not installed in {WITHIN:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise BackendError(
            f"{ssh}: vmcloner could not be installed: {shown(lines[-1], 200)}", hint=f"ssh {ssh}"
        )


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def packed() -> bytes:
    """Return the files of vmcloner and of what it needs, as a tar file for site-packages."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for distribution in needed():
            for file, name in _files(distribution):
                archive.add(file, name, recursive=False)
    return stream.getvalue()


def needed() -> list[metadata.Distribution]:
    """Return vmcloner's distribution and those that it needs and that are installed here."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [DISTRIBUTION]
    while wanted:
        name = wanted.pop()
        if name.lower() in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that isn't installed, or one for other versions of Python
        found[name.lower()] = distribution
        for requirement in distribution.requires or ():
            named = _REQUIREMENT.match(requirement)
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
            if named is not None and (extra is None or _wanted(name, extra[1])):
                wanted.append(named[1])
    return list(found.values())


def _wanted(name: str, extra: str) -> bool:
    return name == DISTRIBUTION and extra in EXTRAS


def _files(distribution: metadata.Distribution) -> Iterator[tuple[Path, str]]:
    """Yield a distribution's files, and their names below site-packages.

    :raises BackendError: it has no list of all its files, as pip writes it.
    """
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    if distribution.name == DISTRIBUTION and (not direct or direct.get("dir_info")):
        yield from _checkout(distribution)
        return
    if distribution.read_text("RECORD") is None:
        raise BackendError(
            f"{distribution.name} is a package of the operating system here, and can't be sent",
            hint="install vmcloner's package there, and set the host's python in the settings",
        )
    for entry in distribution.files or ():
        file = Path(str(entry.locate()))
        if ".." not in entry.parts and entry.suffix != ".pyc" and file.is_file():
            yield file, str(entry)


def _checkout(distribution: metadata.Distribution) -> Iterator[tuple[Path, str]]:
    """Yield the files of a distribution that may be installed in place, from its checkout."""
    for entry in distribution.files or ():
        if entry.parts[0].endswith((".dist-info", ".egg-info")) and entry.suffix != ".pyc":
            yield Path(str(entry.locate())), str(entry)
    top = (distribution.read_text("top_level.txt") or "").split()
    folders = {name: Path(str(import_module(name).__file__)).parent for name in top}
    folders["vmcloner_core/templates"] = shipped()  # in the checkout, a folder beside its package
    for name, folder in folders.items():
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file, f"{name}/{file.relative_to(folder)}"
