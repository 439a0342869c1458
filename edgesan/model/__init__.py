"""Whose bytes run here: a model file is checked, verified and cut in two."""
