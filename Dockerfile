# The service of a run, `vggjax serve`, which is mounted at /model:
#
#   docker build -t vggjax .
#   docker run -p 127.0.0.1:8000:8000 -e VGGJAX_TOKEN -v ./runs/roses:/model:ro vggjax
#
# The first stage has a C++ compiler, which compiles the fast convolution; the last one has none.
FROM python:3.12.11-bookworm AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/vggjax \
    && /opt/vggjax/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12.11-slim-bookworm
RUN useradd --uid 10001 --create-home vggjax
COPY --from=build /opt/vggjax /opt/vggjax
ENV PATH=/opt/vggjax/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/vggjax
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vggjax", "serve", "/model", "--host", "0.0.0.0"]
