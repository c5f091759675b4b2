# syntax=docker/dockerfile:1
# The image of the pods on Kubernetes: preparation, supervisor and workers. docs/kubernetes.md says how to build it.

# A build of torch that fits the nodes' driver. The flavour `devel` is needed for resources.offload alone, whose Adam on
# the CPU DeepSpeed compiles where it runs (with -march=native, so not here); for EFA take a base that has its plugin.
ARG BASE=pytorch/pytorch:2.12.0-cuda12.6-cudnn9-runtime

FROM ${BASE} AS wheel
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY fullft_cluster fullft_cluster
COPY templates templates
COPY manifests manifests
COPY configs configs
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# NCCL finds the fabric by these libraries, and falls back to TCP without them. The base is pinned; Ubuntu's archive keeps
# only the newest of each, so a version here would not be found a month later.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ibverbs-providers libibverbs1 librdmacm1 \
    && rm -rf /var/lib/apt/lists/*

# Newer bases have a user of this number already (`ubuntu`).
RUN (getent passwd 1000 > /dev/null || useradd --uid 1000 --no-create-home worker) \
    && mkdir /home/fullft \
    && chown 1000:1000 /home/fullft

# The versions that the tests run with, but for torch, which is the base's. What does not fit together fails here.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    --mount=type=bind,from=wheel,source=/wheels,target=/build/wheels \
    python3 -c 'import torch; print(f"torch=={torch.__version__}")' > /tmp/torch.txt \
    && grep --invert-match '^torch==' /build/constraints.txt > /tmp/others.txt \
    && python3 -m pip install --no-cache-dir -c /tmp/torch.txt -c /tmp/others.txt \
        "$(echo /build/wheels/*.whl)[train,kubernetes,tracking]" \
    && rm /tmp/torch.txt /tmp/others.txt \
    && python3 -c 'import accelerate, datasets, deepspeed, kubernetes, tensorboard, transformers, wandb, fullft_cluster.train.worker' \
    && fullft-cluster plan --model 7b --json > /dev/null

# After what is slow to build: they change with each build.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fullft-cluster" \
    org.opencontainers.image.description="Workers and supervisor of full fine-tunes on Kubernetes" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

ENV HOME=/home/fullft PYTHONUNBUFFERED=1
WORKDIR /home/fullft
USER 1000:1000
# A pod's own probes and its supervisor say how it is.
HEALTHCHECK NONE
ENTRYPOINT ["python3"]
