"""``python -m ideomotor`` is the same as ``ideomotor``."""

from ideomotor.cli import main

if __name__ == "__main__":
    main()
