"""Conformance suites and reference drivers for the authors of backends.

pytest loads ``vmcloner_core.testing.pytest_plugin`` by its entry point, before a conftest.py of an
author may ask to have this package rewritten: nothing here needs it (PYTEST_DONT_REWRITE).
"""
