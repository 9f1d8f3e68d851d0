"""The command `ldm-dream plot`, as a script of the checkout."""

from ldm_dream.commands.plot import main

if __name__ == "__main__":
    main()
