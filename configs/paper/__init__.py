"""The paper's figures and tables: `python launch.py --config=configs/paper/FILE.py --sweep`.

In each file, `get_config` is the recipe, and `get_sweep` has the points, the paper's values and its claims.
`recipes.py` derives two smaller sizes from the full recipe. `FILE.py:smoke` shows in minutes that the sweep
runs. `FILE.py:small` comes as near to the paper's regime as two CPU cores can in six hours, on real data;
docs/results.md has the projected hours. Other files: `anchor.py` is an experiment at real size, `in_order.py`
trains the most valuable runs of sweeps first, `fig8_teachers.py` draws the predictions of teachers, `results.py`
keeps results, and `times.py` projects hours.
"""
