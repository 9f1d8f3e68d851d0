"""Benchmarks: each prints a table and appends JSON lines with commit, versions and machine to a
file.
"""
