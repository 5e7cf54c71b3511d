"""`python -m autocompress` is the command line."""

from autocompress.cli.main import main

if __name__ == "__main__":
    main(prog_name="autocompress")
