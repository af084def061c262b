"""What an untouched language model can still do with a short text: readers, tasks, compressors of strings, their benchmark."""
