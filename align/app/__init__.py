"""The top of the house: the command line and the thin commands behind it."""
