"""Readers of what pairs come in: one module a format. See `base`."""
