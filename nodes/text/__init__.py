"""Prompts, captions and text encoders that take part in training."""
