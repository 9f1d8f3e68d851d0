"""The command `ldm-dream app`, as a script of the checkout."""

from ldm_dream.commands.app import main

if __name__ == "__main__":
    main()
