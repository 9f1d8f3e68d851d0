"""The command `ldm-dream prepare`, as a script of the checkout."""

from ldm_dream.commands.prepare_data import main

if __name__ == "__main__":
    main()
