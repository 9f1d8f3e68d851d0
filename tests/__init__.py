"""Laws of the project; `python -m tests.faults` is their long form."""
