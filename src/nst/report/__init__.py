"""Runs → tables, figures, one page. Reads files only: nothing here makes a network or a data set."""
