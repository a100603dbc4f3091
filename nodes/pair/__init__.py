"""Train a style from one before and after pair (Pair Customization)."""
