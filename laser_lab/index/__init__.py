"""Vectors on disk and the search in them. Nothing here knows a model."""
