# The servers: the chat API, MLflow and Prefect run from one image, each with its own command.
FROM python:3.11-slim-bookworm

WORKDIR /srv/stateset-agents
RUN useradd --create-home --uid 10001 stateset && chown stateset:stateset /srv/stateset-agents

COPY --chown=stateset:stateset pyproject.toml constraints.txt README.md params.yaml ./
COPY --chown=stateset:stateset components ./components
# An index with CPU or CUDA builds of torch goes in here, if the default is not the one you want.
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install --no-cache-dir -c constraints.txt ".[pipeline,serve,s3,postgres]"

USER 10001
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

CMD ["stateset-agents", "serve", "--host", "0.0.0.0", "--port", "8000"]
