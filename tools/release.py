"""The command `ldm-dream release`, as a script of the checkout."""

from ldm_dream.commands.release import main

if __name__ == "__main__":
    main()
