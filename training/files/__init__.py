"""File formats: LoRAs, concepts, halves, checkpoints and their metadata."""
