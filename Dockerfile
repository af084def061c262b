# The service without torch, built from wheels that lie in dist/, without a network:
#   make wheels && docker build --network none -t tokforget .
#   docker run --rm --read-only -p 127.0.0.1:8000:8000 -v "$PWD/token:/run/secrets/token:ro" tokforget --token-file /run/secrets/token
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
COPY requirements-compress.txt requirements-serve.txt /build/
COPY dist/ /build/dist/
RUN python -m venv /opt/tokforget
RUN /opt/tokforget/bin/pip install --no-cache-dir --no-index --find-links /build/dist -r /build/requirements-serve.txt
RUN /opt/tokforget/bin/pip install --no-cache-dir --no-index --no-deps --find-links /build/dist tokforget

FROM python:${PYTHON}-slim
COPY --from=build /opt/tokforget /opt/tokforget
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tokforget
USER 10001:10001
ENV HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/opt/tokforget/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/tokforget/bin/tokforget", "serve", "--host", "0.0.0.0", "--port", "8000"]
