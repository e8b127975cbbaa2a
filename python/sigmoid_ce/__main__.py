"""`python -m sigmoid_ce` is the command `sigmoid-ce`."""

from sigmoid_ce.cli import main

if __name__ == "__main__":
    main()
