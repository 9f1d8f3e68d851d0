"""`python -m ldm_dream` is `ldm-dream`."""

from ldm_dream.commands.main import main

if __name__ == "__main__":
    main()
