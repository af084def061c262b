"""Folders to and from the Hub: one commit, whole or absent; cards."""
