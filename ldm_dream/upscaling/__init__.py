"""What makes pictures larger. The file to read first is `upscaler.py`."""
