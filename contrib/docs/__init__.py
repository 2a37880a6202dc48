"""The documentation's site and manual pages."""
