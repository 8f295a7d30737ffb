"""Prefect flows. Thin: they chain stages and effects; the science is in coembed."""
