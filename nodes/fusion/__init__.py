"""Fuse several concepts or LoRAs into one LoRA (gradient fusion of Mix-of-Show)."""
