"""``python -m mimbench``: the same as the console script, for ``torchrun -m`` and odd search paths."""

from mimbench.cli import main

if __name__ == "__main__":
    main()
