"""The memory study: the forecast before step 1 compared with the measured peak."""
