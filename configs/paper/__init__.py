"""The paper's figures and tables: `python launch.py --config=configs/paper/FILE.py --sweep`.

Each file's `get_config` is its recipe, and `get_sweep` its points and the paper's values. With the
argument `small` (`FILE.py:small`) it runs in minutes on two CPU cores, on real data.
"""
