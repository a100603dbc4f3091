"""Load, save and apply LoRAs."""
