"""The demo pool: a small shop, drawn from a seed, with faults planted for curation to find."""

from coembed.pairs.shop.pool import SOUNDS_TABLE, PoolSummary, draw_pool

__all__ = ["SOUNDS_TABLE", "PoolSummary", "draw_pool"]
