"""`python -m sf.cli`, as engines and torchrun start it."""

from sf.cli import main

if __name__ == "__main__":
    main()
