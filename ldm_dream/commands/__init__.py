"""The commands of `ldm-dream`, one file each; `main.py` finds the one that is asked for.

A command parses, calls the library and prints. The library below it prints nothing.
"""
