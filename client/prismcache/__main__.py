"""``python -m prismcache`` is the command ``prismcache``."""

from prismcache.cli import main

if __name__ == "__main__":
    main()
