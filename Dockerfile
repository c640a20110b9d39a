# syntax=docker/dockerfile:1
# Builds for the architecture that it runs for. PYTHON_IMAGE is any image with a merged /usr, python3 and
# pip: the official ones, or Debian with python3 and python3-pip. Pin both by digest:
#   docker build --build-arg PYTHON_IMAGE=docker.io/library/python@sha256:... \
#                --build-arg ARTIFACTS_IMAGE=nvcr.io/nvidia/k8s/container-toolkit@sha256:... .
# The toolkit's files of a local directory (below it artifacts/deb or artifacts/rpm): --build-context artifacts=DIRECTORY
# Without a network: put the wheels of every requirements.txt into wheels/.
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-trixie
ARG ARTIFACTS_IMAGE=nvcr.io/nvidia/k8s/container-toolkit:v1.20.2

FROM ${ARTIFACTS_IMAGE} AS artifacts

FROM ${PYTHON_IMAGE} AS builder
ARG SOURCE_DATE_EPOCH=0
COPY . /src
RUN python3 -IB /src/deploy/image/assemble.py /image
COPY --from=artifacts /artifacts /artifacts
RUN python3 -IB /src/deploy/image/digests.py /artifacts /digests

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=
ARG PYTHON_IMAGE
ARG ARTIFACTS_IMAGE
LABEL org.opencontainers.image.title="nvidia-toolkit" \
      org.opencontainers.image.description="Installs the NVIDIA Container Toolkit on a Kubernetes node" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      nvidia-toolkit.artifacts="${ARTIFACTS_IMAGE}"
COPY --from=builder /image /
COPY --from=artifacts /artifacts /artifacts
COPY --from=builder /digests /artifacts
COPY entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
