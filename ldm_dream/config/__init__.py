"""Every knob of a run. `files.py` reads a config; `run.py`, `autoencoder.py`, `networks.py`,
`process.py` and `data.py` are its knobs, of which `reference.py` makes docs/config.md. None imports torch.
"""
