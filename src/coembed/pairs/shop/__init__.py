"""The demo pool: a small shop, drawn from a seed, with faults planted for curation to find."""

from coembed.pairs.shop.pool import PoolSummary, draw_pool

__all__ = ["PoolSummary", "draw_pool"]
