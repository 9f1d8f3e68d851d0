"""What trains. The file to read first is `train.py`."""
