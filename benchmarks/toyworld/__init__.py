"""The toy world: a renderer whose truth is known, its judge and its base model."""
