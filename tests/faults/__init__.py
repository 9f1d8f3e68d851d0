"""Faults on purpose: damaged inputs and killed processes, by the thousand and from a seed.

python -m tests.faults KIND N --seed S

A short form of every kind runs in the tests.
"""
