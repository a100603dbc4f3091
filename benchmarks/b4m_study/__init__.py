"""What ``b4m.py`` trains, how its arms differ, and the report."""
