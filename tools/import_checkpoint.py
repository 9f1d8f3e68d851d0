"""The command `ldm-dream import`, as a script of the checkout."""

from ldm_dream.commands.import_checkpoint import main

if __name__ == "__main__":
    main()
