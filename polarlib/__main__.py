"""``python -m polarlib`` and the script ``polarlib``: the command line."""

import sys


def main() -> None:
    """Run the command line, or name the extra that installs it; never returns."""
    try:
        from polarlib.cli import main as run
    except ModuleNotFoundError:  # a package is there, and damaged
        raise
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
