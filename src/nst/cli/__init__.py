"""The commands of `nst`: one module each, with a docstring for `--help` and `main(words)`."""
