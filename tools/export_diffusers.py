"""The command `ldm-dream export`, as a script of the checkout."""

from ldm_dream.commands.export_diffusers import main

if __name__ == "__main__":
    main()
