"""Optimizers by name, and optimizers that update both factors of a layer jointly."""
