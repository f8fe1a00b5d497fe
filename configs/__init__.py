"""One file per experiment. Each says where it differs from kdjax/config/base.py, which has every field."""
