"""
The compressor over HTTP: `tokforget serve`. Only this package imports FastAPI and uvicorn, from the extra `serve`.
"""
