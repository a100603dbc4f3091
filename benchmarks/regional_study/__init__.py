"""The parts of the study of regions."""
