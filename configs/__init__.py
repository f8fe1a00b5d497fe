"""One file an experiment. `base.py` holds every field; the others say where they differ."""
