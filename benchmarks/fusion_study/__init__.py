"""What ``fusion.py`` fuses, beside what it is compared to, what it costs, and the report."""
