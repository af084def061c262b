"""From documents to blocks of tokens."""
