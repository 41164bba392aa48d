"""`python -m trikv` is the `trikv` command: how a node is started where nothing is installed on the PATH."""

from trikv.cli.main import main

if __name__ == "__main__":
    main()
