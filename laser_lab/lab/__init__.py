"""What only notebooks and benchmarks need: cached grids, figures, stopwatch, published numbers, MTEB, runners."""
