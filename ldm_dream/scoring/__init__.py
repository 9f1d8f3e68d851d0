"""What measures results: one picture (`metrics.py`), sets of them (`set_metrics.py`), whole folders
(`evaluation.py`).
"""
