"""What a region is and where it lies."""
