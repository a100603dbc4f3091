"""The region study: prompts, LoRAs and control that act in one part of the canvas."""
