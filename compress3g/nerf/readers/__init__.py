"""Readers of the folders people keep posed pictures in, one module per layout."""
