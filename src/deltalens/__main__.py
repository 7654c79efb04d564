"""`python -m deltalens` is the command line."""

from deltalens.cli.main import entry

if __name__ == "__main__":
    entry()
