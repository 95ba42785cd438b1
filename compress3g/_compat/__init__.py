"""Remedies for what other packages break."""
