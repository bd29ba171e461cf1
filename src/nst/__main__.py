"""`python -m nst`."""

from nst.cli.main import main

if __name__ == "__main__":
    main()
