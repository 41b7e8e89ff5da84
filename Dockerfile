# The agent's image: one interpreter, the packages of requirements.lock, the agent and its compiled kernels.
# No shell, no compiler, no package manager. BASE is any Debian from 12 on with Python 3.11 to 3.13 as
# python3; of it only what deploy/image/rootfs.py takes ends up in the image. docs/deployment.md, "The image".
ARG BASE=python:3.13-slim

FROM ${BASE} AS builder
RUN need=""; \
    python3 -c 'import ensurepip, venv' 2>/dev/null || need="python3-venv"; \
    command -v strip > /dev/null || need="$need binutils"; \
    test -e /etc/ssl/certs/ca-certificates.crt || need="$need ca-certificates"; \
    test -z "$need" || (apt-get update && apt-get install -y --no-install-recommends $need)
RUN python3 -m venv /opt/tidegauge
WORKDIR /source
COPY requirements.lock ./
RUN /opt/tidegauge/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock
COPY requirements-dev.lock pyproject.toml README.md LICENSE ./
# What builds the package comes from the lock as well, to a place of its own.
RUN awk '/^[^ ]/ {wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} wanted' \
    requirements-dev.lock > build.lock \
 && /opt/tidegauge/bin/pip install --no-cache-dir --require-hashes --target /build -r build.lock
COPY deploy/image /image
COPY agent agent
RUN PYTHONPATH=/build /opt/tidegauge/bin/pip install --no-compile --no-build-isolation --no-deps . \
 && /opt/tidegauge/bin/pip uninstall --quiet --yes pip setuptools \
 && python3 /image/rootfs.py slim /opt/tidegauge \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/tidegauge/lib
# Kernels are compiled for any CPU of the architecture (x86-64, armv8-a), not for this machine's: a container
# that cannot write its cache could not start on another. x86-64-v2 and the like are quicker by a few percent.
ARG CPU=generic
ENV NUMBA_CACHE_DIR=/opt/tidegauge/kernels \
    NUMBA_CACHE_LOCATOR_CLASSES=tidegauge.baked.Kernels \
    NUMBA_CPU_NAME=${CPU} \
    NUMBA_CPU_FEATURES=""
RUN /opt/tidegauge/bin/python -c 'import tidegauge.app' \
 && python3 /image/rootfs.py assemble /opt/tidegauge /rootfs

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
ARG BASE
ARG CPU=generic
LABEL org.opencontainers.image.title="tidegauge" \
      org.opencontainers.image.description="Telemetry sidecar for ML model servers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE}" \
      tidegauge.cpu="${CPU}" \
      tidegauge.sbom="/opt/tidegauge/sbom.spdx.json"
# Three layers, so that a new version of the agent is a small download.
COPY --from=builder /rootfs/system /
COPY --from=builder /rootfs/packages /
COPY --from=builder /rootfs/agent /
# One thread for Arrow, which would take as many as the node has CPUs, whatever the container's share.
ENV PATH=/opt/tidegauge/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/tidegauge/kernels \
    NUMBA_CACHE_LOCATOR_CLASSES=tidegauge.baked.Kernels \
    NUMBA_CPU_NAME=${CPU} \
    NUMBA_CPU_FEATURES="" \
    OMP_NUM_THREADS=1
# Numeric, so that the kubelet can see that it is not root.
USER 65532:65532
EXPOSE 4317 4318 9464
ENTRYPOINT ["tidegauge"]
CMD ["run"]
