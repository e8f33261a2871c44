"""`python -m cehrxgpt.cli`, for launchers that start modules."""

from cehrxgpt.cli import main

main()
