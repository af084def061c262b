"""
The reader benchmark: how well a frozen language model works with compressed text. Readers, tasks, compressors.
"""
