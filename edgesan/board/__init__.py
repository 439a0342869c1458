"""Tools of a board, not of a frame: write a card, configure it, update it, find what is wrong."""
