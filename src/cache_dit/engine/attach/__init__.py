"""How the cache comes onto a model, and how it leaves."""
