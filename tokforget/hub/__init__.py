"""Push folders to the Hub, each in one commit, and write their cards."""
