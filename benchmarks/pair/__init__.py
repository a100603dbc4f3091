"""The Pair Customization study: styles learnt from pairs, against an ordinary LoRA."""
