"""The region study: prompts, LoRAs and control in one part of the canvas."""
