"""The command `ldm-dream train`, as a script of the checkout."""

from ldm_dream.commands.train import main

if __name__ == "__main__":
    main()
