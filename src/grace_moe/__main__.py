"""`python -m grace_moe`: the command line, also for torchrun."""

from grace_moe.cli import main

if __name__ == "__main__":
    main()
