"""What all rooms stand on: files and the cache, inputs, statistics, float32 products. It knows no model."""
