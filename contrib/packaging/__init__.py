"""Debian packages, and tests of other distributions' userlands, in chroots made by mmdebstrap."""
