"""The doctor: all that is wrong with a run, where the run itself would stop at the first, and what it will take."""
