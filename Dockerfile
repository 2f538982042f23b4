# Two images: `docker build --target train .` (GPU support) and `docker build --target serve .` (slim server).
# Every step is a make target, so it can be run and tested without Docker.
FROM python:3.12-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY conf conf
COPY bert_mtl bert_mtl
COPY data_prep data_prep
COPY serving serving
COPY spans spans
COPY hydra_plugins hydra_plugins

FROM base AS train
RUN make install EXTRAS=cuda && make install EXTRAS=serve,sweep,track
ENTRYPOINT ["/app/.venv/bin/python", "-m"]
CMD ["bert_mtl.train", "task=imdb"]

FROM base AS server
RUN make install-server VENV=/app/.venv

# The virtual environment alone: no compiler, no make, no training.
FROM python:3.12-slim AS serve
RUN useradd --uid 10001 --no-create-home app
COPY --from=server /app/.venv /app/.venv
WORKDIR /tmp
ENV PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=10s CMD ["/app/.venv/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["/app/.venv/bin/python", "-m", "serving.server", "http.host=0.0.0.0"]
CMD ["bundle=/bundle"]
