"""The optimisers study: loss against steps and seconds, and what preconditioning costs."""
