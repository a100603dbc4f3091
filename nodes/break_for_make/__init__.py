"""Train content and style halves and combine them (Break-for-Make)."""
