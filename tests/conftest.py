"""Settings of all tests, made before anything is imported."""

import os

# face-alignment would compile its small helpers for a quarter of a minute, for a few faces.
os.environ['NUMBA_DISABLE_JIT'] = '1'
