"""Helpers that know no model: files and the cache, inputs, statistics, float32 products."""
