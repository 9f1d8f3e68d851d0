"""The command `ldm-dream upscale`, as a script of the checkout."""

from ldm_dream.commands.upscale import main

if __name__ == "__main__":
    main()
