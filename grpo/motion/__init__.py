"""Body motion for policies whose vocabulary has code tokens: a skeleton, its features, and data sets of both kinds.

Read `skeleton.py`, then `features.py`; `walker.py` and `camera.py` make synthetic motion, `nymeria.py` reads recorded.
"""
