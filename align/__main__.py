"""`python -m align` is the command line."""

from align.app.cli import main

main()
