"""A table of experiments: its file, its plan, its runs, and the evaluation of the trained networks."""
