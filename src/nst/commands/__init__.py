"""The commands of `nst`, one module each with a docstring that says what it does and `main(words)`."""
