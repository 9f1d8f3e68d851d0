"""Models of others in (`published.py`), ours out for diffusers (`diffusers.py`)."""
