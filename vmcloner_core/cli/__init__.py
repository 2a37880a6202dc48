"""The command shell: a thin client of the engine, in cliff."""
