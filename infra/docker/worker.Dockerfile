# The worker: a checkout with everything the pipeline needs. Build from the repository root.
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /srv/stateset-agents
RUN useradd --create-home --uid 10001 stateset && chown stateset:stateset /srv/stateset-agents

# Dependencies first, so that a change of code does not install them again.
COPY --chown=stateset:stateset pyproject.toml constraints.txt README.md ./
COPY --chown=stateset:stateset components ./components
# An index with CPU or CUDA builds of torch goes in here, if the default is not the one you want.
ARG PIP_EXTRA_INDEX_URL=""
# The last one is for the worker of a Kubernetes work pool.
RUN pip install --no-cache-dir -c constraints.txt -e ".[pipeline,serve,hpo,s3,postgres]" \
    "prefect-kubernetes==0.8.0"

COPY --chown=stateset:stateset . .
USER 10001

# The image has no .git: DVC is told so, and the revision comes from the build.
ARG GIT_REVISION="unknown"
ENV STATESET_GIT_REVISION=${GIT_REVISION} \
    DVC_NO_ANALYTICS=1 \
    PYTHONUNBUFFERED=1
# The folders are made here because a volume takes the owner of the folder that it covers.
RUN dvc config --local core.no_scm true && mkdir -p .stateset .dvc/cache

CMD ["infra/start_worker.sh"]
