"""`python -m adyton.cli`: the command line, for where the script is not on PATH."""

from adyton.cli import main

main()
