# The base is named by a build argument, so that a build can pin it by digest.
ARG BASE=docker.io/library/python:3.13-slim
ARG ARTIFACTS_IMAGE=nvcr.io/nvidia/k8s/container-toolkit:v1.20.0

FROM ${ARTIFACTS_IMAGE} AS artifacts

FROM ${BASE} AS builder
COPY . /src
RUN python -m venv /opt/nvidia-toolkit \
 && /opt/nvidia-toolkit/bin/pip install --no-cache-dir --constraint /src/constraints.txt /src \
 && /opt/nvidia-toolkit/bin/pip uninstall --yes pip \
 && python -m compileall -q /opt/nvidia-toolkit

FROM ${BASE}
LABEL org.opencontainers.image.title="nvidia-toolkit" \
      org.opencontainers.image.description="Installs the NVIDIA Container Toolkit on a Kubernetes node" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=artifacts /artifacts /artifacts
COPY --from=builder /opt/nvidia-toolkit /opt/nvidia-toolkit
COPY entrypoint.sh /usr/local/bin/entrypoint.sh
RUN ln -s /opt/nvidia-toolkit/bin/nvidia-toolkit /opt/nvidia-toolkit/bin/nvidia-ctk-installer /usr/local/bin/
ENV PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
