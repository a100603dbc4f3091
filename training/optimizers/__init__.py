"""Optimizers by name, and those that work on a layer's two factors together."""
