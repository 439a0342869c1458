"""What puts edgesan onto a board: see README.md here."""
