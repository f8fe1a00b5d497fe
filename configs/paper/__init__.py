"""The paper's figures and tables: `python launch.py --config=configs/paper/FILE.py --sweep`.

Each file's `get_config` is its recipe, and `get_sweep` its points and the paper's values. With the
argument `small` (`FILE.py:small`) it runs in minutes on a CPU core, on real data: `after fig3` in the files
means in the --workdir of that sweep, where the teachers are trained and the time was measured.
"""
