"""The cache: when a step is computed, how a cached one is filled, and how both come onto a model."""
