"""Studies of the pack's methods, on the toy base and at real widths. ``run.py`` starts them."""
