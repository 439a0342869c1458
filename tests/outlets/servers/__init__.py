"""Real servers that tests push to, each a program of its own."""
