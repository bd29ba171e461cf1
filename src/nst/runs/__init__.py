"""A run from start to finish, and the files in its folder."""
