"""The optimiser study: loss against steps and seconds, and the cost of preconditioning."""
