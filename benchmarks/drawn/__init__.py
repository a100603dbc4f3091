"""The drawn world: drawings by several teams of artists, and base models trained on them."""
