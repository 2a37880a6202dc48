"""Image builder ``debian``: a small Debian for virtual machines, made by mmdebstrap."""
