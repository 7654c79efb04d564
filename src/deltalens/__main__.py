"""`python -m deltalens` is the command line."""

from deltalens.cli.main import main

if __name__ == "__main__":
    main()
