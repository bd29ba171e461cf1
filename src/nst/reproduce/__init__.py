"""A table of experiments: what it holds, which runs it needs, running them, looking into the networks that came out."""
