"""The Pair Customization study on the toy base: trainings, pictures, curves, report."""
