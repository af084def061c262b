"""The two networks, what they are read from and saved to, and what a keep mask costs under them."""
