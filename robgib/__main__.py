"""``python -m robgib``."""

from robgib.cli import main

if __name__ == "__main__":
    main()
