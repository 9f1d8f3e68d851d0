"""Every knob of a run. `files.py` reads a config; `run.py`, `model.py`, `networks.py` and `data.py`
are its knobs, of which `reference.py` makes docs/config.md. None imports torch.
"""
