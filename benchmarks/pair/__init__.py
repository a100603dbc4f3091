"""The Pair Customization study: styles learnt from pairs, compared with an ordinary LoRA."""
