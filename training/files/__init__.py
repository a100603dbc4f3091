"""Formats of files: LoRAs, concepts, halves, checkpoints and their metadata."""
