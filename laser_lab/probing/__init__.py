"""Probes: what thoughts say (`vocabulary`), where they lie (`geometry`), what they do (`causal`, `swaps`), and what all
layers hold (`tracing`, `lens`). They never train a model or plot."""
