"""Every knob of a run. `files.py` reads a config, `run.py`, `model.py` and `data.py` are its knobs;
none imports torch.
"""
