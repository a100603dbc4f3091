"""Read, resize, crop and encode training pictures."""
