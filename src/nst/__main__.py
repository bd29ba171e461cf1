"""`python -m nst`."""

from nst.commands.main import main

if __name__ == "__main__":
    main()
