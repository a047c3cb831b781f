"""``python -m polarlib``: the command line."""

from polarlib.cli import main

if __name__ == "__main__":
    main()
