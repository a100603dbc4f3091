"""Style guidance during sampling."""
