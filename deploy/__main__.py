"""`python -m deploy` is `hustings`."""

from deploy.cli import main

if __name__ == "__main__":
    main()
