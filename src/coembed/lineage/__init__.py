"""Lineage: which code, which params and which data a run had. Calls git and DVC as commands."""
