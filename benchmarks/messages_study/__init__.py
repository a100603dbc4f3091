"""What the nodes say of bad input: the sections of the page that one file would not hold."""
