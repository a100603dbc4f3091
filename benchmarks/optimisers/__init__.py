"""The optimiser study: loss over steps and seconds, and the cost of preconditioning."""
