"""`python -m pixstorefs` is the command `pixstorefs`."""

from pixstorefs.cli import main

if __name__ == "__main__":
    main()
