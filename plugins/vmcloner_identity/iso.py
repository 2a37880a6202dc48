"""Write small ISO 9660 images in process. Rock Ridge and Joliet preserve the file names."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from vmcloner_core.errors import HostCommandError


def write(image: Path, label: str, files: Mapping[str, bytes]) -> None:
    """Write an image atomically, readable only by its owner.

    :param files: contents by name, in the root folder.
    :raises HostCommandError: the image cannot be written.
    """
    iso = pycdlib.PyCdlib()
    try:
        iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
        for number, (name, content) in enumerate(files.items()):
            iso.add_fp(
                io.BytesIO(content),
                len(content),
                f"/FILE{number}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
                file_mode=0o100400,
            )
        _replace(image, iso)
    except OSError as error:
        raise HostCommandError(f"{image}: {error.strerror}") from error
    except PyCdlibException as error:
        raise HostCommandError(f"{image}: {error}") from error
    finally:
        with contextlib.suppress(PyCdlibException):
            iso.close()


def _replace(image: Path, iso: pycdlib.PyCdlib) -> None:
    """Replace an image by a complete one. One run at a time does that."""
    draft = image.with_name(f".{image.name}.draft")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        draft.unlink(missing_ok=True)  # left by a killed run
        handle = os.open(draft, flags, 0o600)
        with os.fdopen(handle, "w+b") as stream:
            os.fchmod(handle, 0o600)
            iso.write_fp(stream)
        draft.rename(image)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
