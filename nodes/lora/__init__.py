"""Load, save and apply LoRA files."""
