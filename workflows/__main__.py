"""`python -m workflows`: the command line, for processes that must use this interpreter."""

from workflows.cli import main

if __name__ == "__main__":
    main()
