"""The paper's figures and tables: `python launch.py --config=configs/paper/FILE.py --sweep`.

Each file's `get_config` is its recipe; its `get_sweep` has the points, the paper's values and the paper's claims.
`recipes.py` says how two smaller sizes follow from the full recipe. `FILE.py:smoke` shows in minutes that the
sweep runs. `FILE.py:small` is the paper's regime at reduced size, on real data and two CPU cores. Times on one core
are estimated from 1,000 images trained in a second; `after fig3` means in the --workdir of that sweep, which
has the teachers.
"""
