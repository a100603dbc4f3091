"""The drawn world: real drawings by several artists' teams, and the base models trained on them."""
