"""A run from start to finish, and what it leaves in its folder."""
