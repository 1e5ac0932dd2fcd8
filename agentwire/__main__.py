"""``python -m agentwire``: the command line, where its script is not on the path."""

from agentwire.cli.app import main

if __name__ == "__main__":
    main()
