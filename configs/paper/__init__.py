"""The paper's figures and tables: `python launch.py --config=configs/paper/FILE.py --sweep`.

Each file's `get_config` is its recipe; its `get_sweep` has the points, the paper's values and the paper's claims.
`recipes.py` says how two smaller sizes follow from the full recipe. `FILE.py:smoke` shows in minutes that the
sweep runs. `FILE.py:small` is as near to the paper's regime as two CPU cores come in six hours, on real data;
docs/results.md has the projected hours of each. `anchor.py` is one experiment at real size, `in_order.py` trains sweeps
with the most valuable runs first, `fig8_teachers.py` draws what teachers predict, and `results.py` keeps results.
"""
