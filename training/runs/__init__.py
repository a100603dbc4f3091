"""Folders of training runs and fusions: results, checkpoints and locks."""
