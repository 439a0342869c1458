"""A training: its data, its stages, and the loop that runs them. `export.train` is the command."""
