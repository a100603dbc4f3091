"""What ``ed_lora.py`` trains, how its arms differ, and the report."""
