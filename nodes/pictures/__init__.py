"""Training pictures: read, fitted, cropped and encoded."""
