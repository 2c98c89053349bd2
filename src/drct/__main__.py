"""``python -m drct VERB ...``, the same as ``drct VERB ...``; also for ``torchrun -m drct train ...``."""

from drct.cli import main

if __name__ == "__main__":
    main()
