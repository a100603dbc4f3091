"""The memory study: the forecast before step 1 against the measured peak."""
