"""
The reader benchmark: how well an untrained language model works with compressed text. Readers, tasks, compressors.
"""
