"""Compress prompts, and restore them. Compressing does not import transformers."""
