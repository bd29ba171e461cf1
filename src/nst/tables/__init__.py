"""Tables of experiments: their files, their runs, one frame of all runs, and statistics over seeds."""
