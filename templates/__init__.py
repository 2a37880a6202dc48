"""Templates that are shipped with vmcloner: TOML files, read as package data."""
