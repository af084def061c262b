"""The two networks, their folders, and the cost of a keep mask under a reconstructor."""
