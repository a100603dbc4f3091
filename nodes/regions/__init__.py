"""Prompts, LoRAs and control for regions of a picture."""
