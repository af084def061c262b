"""The compressor over HTTP: `tokforget serve`. FastAPI and uvicorn, of the extra `serve`, are imported here and nowhere else."""
