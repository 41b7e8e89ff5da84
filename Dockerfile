# The agent's image. BASE is any Debian with Python 3.11 to 3.13 as python3.
ARG BASE=python:3.13-slim

FROM ${BASE} AS builder
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
 || (apt-get update && apt-get install -y --no-install-recommends python3-venv)
RUN python3 -m venv /opt/tidegauge
WORKDIR /source
COPY requirements.lock ./
RUN /opt/tidegauge/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock
COPY requirements-dev.lock pyproject.toml README.md LICENSE ./
# What builds the package comes from the lock as well, to a place of its own.
RUN awk '/^[^ ]/ {wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} wanted' \
    requirements-dev.lock > build.lock \
 && /opt/tidegauge/bin/pip install --no-cache-dir --require-hashes --target /build -r build.lock
COPY agent agent
RUN PYTHONPATH=/build /opt/tidegauge/bin/pip install --no-compile --no-build-isolation --no-deps . \
 && /opt/tidegauge/bin/pip uninstall --quiet --yes pip setuptools \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/tidegauge/lib
# Kernels are compiled for any CPU of the architecture: those of this machine would not be found on
# another, and a container that cannot write its cache could not start there.
ENV NUMBA_CACHE_DIR=/opt/tidegauge/kernels \
    NUMBA_CACHE_LOCATOR_CLASSES=tidegauge.baked.Kernels \
    NUMBA_CPU_NAME=generic
RUN /opt/tidegauge/bin/python -c 'import tidegauge.app'

FROM ${BASE}
LABEL org.opencontainers.image.title="tidegauge" \
      org.opencontainers.image.description="Telemetry sidecar for ML model servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/tidegauge /opt/tidegauge
# One thread for Arrow, which would take as many as the node has CPUs, whatever the container's share.
ENV PATH=/opt/tidegauge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/tidegauge/kernels \
    NUMBA_CACHE_LOCATOR_CLASSES=tidegauge.baked.Kernels \
    NUMBA_CPU_NAME=generic \
    OMP_NUM_THREADS=1
# Numeric, so that the kubelet can see that it is not root.
USER 65532:65532
EXPOSE 4317 4318 9464
ENTRYPOINT ["tidegauge"]
CMD ["run"]
