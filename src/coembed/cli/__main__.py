"""`python -m coembed.cli`."""

from coembed.cli import main

main()
