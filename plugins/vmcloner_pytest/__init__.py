"""Machines for tests: fixtures of pytest over the engine. See docs/pytest.md."""
