"""Lets ``python -m ownlet.cli`` do what ``ownlet`` does."""

from ownlet.cli.main import main

main()
