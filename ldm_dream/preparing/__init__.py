"""Data sets from their publishers' archives to the folders or LMDBs that the configs name."""
