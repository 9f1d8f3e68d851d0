"""The command `ldm-dream evaluate`, as a script of the checkout."""

from ldm_dream.commands.evaluate import main

if __name__ == "__main__":
    main()
