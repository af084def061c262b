"""The shell command `tokforget`."""
