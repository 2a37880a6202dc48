"""Conformance suites and reference drivers for the authors of backends."""
