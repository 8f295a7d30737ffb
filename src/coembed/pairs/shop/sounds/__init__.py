"""The sounds of the demo pool: synthesised from a seed, captioned, with faults among them."""
