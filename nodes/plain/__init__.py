"""Train an ordinary LoRA on pictures and captions."""
