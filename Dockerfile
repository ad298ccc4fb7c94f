# The suite with its environment, from requirements.lock by `make setup`: for `docker run`, or as `container-image` of profiles/kubernetes.
#   docker build --tag d2llm --build-arg TORCH_INDEX=<address of PyTorch's CPU wheel index> .
#   docker build --tag d2llm --build-arg BUILD=cuda .    # CUDA comes with PyTorch's wheels; the host has the driver
FROM python:3.11-slim-bookworm

# cpu: the lock as it is. cuda: PyTorch's plain build of the same version (docs/running.md#gpus).
ARG BUILD=cpu
ARG TORCH_INDEX=

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 d2llm \
    && install --directory --owner d2llm /opt/d2llm

USER d2llm
WORKDIR /opt/d2llm

# What is installed first, so that an edit of the code does not install it again.
COPY --chown=d2llm Makefile pyproject.toml README.md LICENSE requirements.lock ./
RUN mkdir d2llm baselines \
    && case "$BUILD" in \
        cpu) make setup TORCH_INDEX="$TORCH_INDEX" ;; \
        cuda) sed 's/+cpu//' requirements.lock > gpu.lock && make setup LOCK=gpu.lock ;; \
        *) echo "BUILD: expected cpu or cuda; found $BUILD"; exit 1 ;; \
    esac \
    && rm -rf ~/.cache

COPY --chown=d2llm . .
RUN touch .venv/.ready

# Models of the hub lie in HF_HOME: mount a folder there to keep them.
ENV PATH=/opt/d2llm/.venv/bin:$PATH HF_HOME=/home/d2llm/hub
CMD ["snakemake", "--cores", "all"]
