"""What people install: prompts made shorter, and restored. Loads no transformers."""
