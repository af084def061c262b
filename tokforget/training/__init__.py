"""The joint loop of policy and reconstructor, and the reconstructor's own training."""
