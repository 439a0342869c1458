"""What puts edgesan on a board: see README.md here."""
