"""A small trained text-to-image model, and pictures of it without and with the cache, side by side."""

from cache_dit.demo.pipeline import MODEL_FOLDER, DemoPipeline, load_pipeline

__all__ = ["MODEL_FOLDER", "DemoPipeline", "load_pipeline"]
