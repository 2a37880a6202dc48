"""Pages as Chromium shows them."""

import platform
import shutil
import subprocess

import pytest
from PIL import Image

from tests.skipping import NO_PACKAGE

_UBUNTU = platform.freedesktop_os_release()["ID"] == "ubuntu"
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason=f"{NO_PACKAGE} chromium" if _UBUNTU else "chromium isn't installed",
)


def shown(page, scheme, size, folder):
    """Return how a file looks in a light or dark window of ``WIDTH,HEIGHT`` pixels."""
    picture = folder / "page.png"
    words = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder}/profile", "--force-device-scale-factor=1",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        f"--window-size={size}", f"--screenshot={picture}", f"file://{page}",
    ]  # fmt: skip
    subprocess.run(words, check=True, timeout=60, capture_output=True)
    with Image.open(picture) as image:
        return image.convert("RGB")
