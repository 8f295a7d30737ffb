"""The index: searchable collections of embeddings.

Only `qdrant*.py` import qdrant_client, and only `edge*.py` import qdrant_edge.
"""
