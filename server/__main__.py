"""`python -m trimtab.server …` is the command `trimtab …`, where the script is not on the path."""

from .commands.cli import main

if __name__ == "__main__":
    main()
