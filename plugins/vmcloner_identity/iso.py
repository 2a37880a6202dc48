"""Write small ISO 9660 images in process. Rock Ridge and Joliet preserve the file names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from vmcloner_core.errors import HostCommandError
from vmcloner_core.trusted_files import replacing


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
        with replacing(image, 0o600) as stream:
            iso.write_fp(stream)
    except OSError as error:
        raise HostCommandError(f"{image}: {error.strerror}") from error
    except PyCdlibException as error:
        raise HostCommandError(f"{image}: {error}") from error
    finally:
        with contextlib.suppress(PyCdlibException):
            iso.close()
