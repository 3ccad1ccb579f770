# The image of the Treadle server. Its kernels are compiled while the image is built.
#
#   docker build -t treadle .
#   docker run -p 127.0.0.1:50051:50051 -p 127.0.0.1:8080:8080 -v treadle:/data treadle
#
# Port 50051 speaks gRPC, and port 8080 HTTP. Without 127.0.0.1 a port is open to all who reach the
# machine. docs/security.md shows how to serve a network, with TLS and tokens, and docs/scale.md how
# to run several servers on one database: what that needs is in the image.
#
# `docker build --build-arg LOCK=ray.lock -t treadle-ray .` makes the image for jobs on a Ray cluster.
#
# Both stages keep the environment at the same path, because its programs name the path of their
# Python.

FROM docker.io/library/python:3.11-slim-bookworm AS build

ARG LOCK=image.lock
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Packages come from locks with their hashes, as wheels, so that nothing else is installed and no
# code of theirs runs. What builds and lists stays in /opt/build; the image gets /opt/treadle.
COPY requirements/build.lock requirements/$LOCK requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --no-deps --only-binary :all: \
        --requirement requirements/build.lock \
    && python -m venv --without-pip /opt/treadle \
    && /opt/build/bin/pip --python /opt/treadle/bin/python install --require-hashes --no-deps \
        --only-binary :all: --requirement "requirements/$LOCK"

COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY model model
COPY server server
COPY client client
COPY benchmarks benchmarks
COPY proto proto
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/treadle/bin/python install --no-deps --no-index dist/*.whl

WORKDIR /opt/treadle/lib/python3.11/site-packages
# Remove what no server runs: tests of packages, headers and stubs.
RUN find numpy numba llvmlite google -type d -name tests -prune -exec rm -rf {} + \
    && rm -rf numba/cuda numpy/_core/include numpy/f2py \
    && find . -name '*.pyi' -delete \
    # What the image contains, in CycloneDX.
    && /opt/build/bin/cyclonedx-py environment --pyproject /src/pyproject.toml \
        --output-reproducible --output-file /opt/treadle/sbom.json /opt/treadle/bin/python \
    # The same time for all sources, in whole seconds, which layers of an image can keep.
    && find /opt/treadle -exec touch --no-dereference -d 2000-01-01T00:00:00Z {} + \
    # Byte code that is not checked against the sources, since none can be written at run time.
    && /opt/treadle/bin/python -m compileall -q --invalidation-mode unchecked-hash .


FROM docker.io/library/python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="treadle" \
      org.opencontainers.image.description="Train, serve and score small recurrent sequence models on any CPU, over gRPC" \
      org.opencontainers.image.licenses="MIT"

# Group 0 owns what the server writes, so that any other uid may run it (`--user 12345`
# and OpenShift keep group 0). The server gives the group of /data the rights of its user.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /data --shell /usr/sbin/nologin treadle \
    && install -d -o 10001 -g 0 -m 2775 /data \
    && install -d -m 2775 /var/cache/treadle \
    # The base's own pip and what it brings.
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.11/ensurepip \
        /usr/local/lib/python3.11/site-packages/*
COPY --from=build /opt/treadle /opt/treadle
# KubeRay starts Ray from a login shell, which sets PATH to the folders of the system.
RUN if [ -e /opt/treadle/bin/ray ]; then ln -s /opt/treadle/bin/ray /usr/local/bin/ray; fi

ENV PATH=/opt/treadle/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/cache/treadle \
    TREADLE_CPU_TARGET=portable \
    TREADLE_ADDRESS=0.0.0.0:50051 \
    TREADLE_HTTP_ADDRESS=0.0.0.0:8080 \
    TREADLE_DATA_DIR=/data

# On x86-64, compile kernels for both levels that the server may choose at start. Compiling also
# runs them, so a machine without AVX-512 can make the first level only; the second is then compiled
# at start. The kernels belong to root: a server does not use those of any other user.
RUN if [ "$(uname -m)" = x86_64 ]; then \
        NUMBA_CPU_NAME=x86-64-v3 NUMBA_CPU_FEATURES='' treadle-server --warm \
        && if grep -q avx512vl /proc/cpuinfo; then \
            NUMBA_CPU_NAME=x86-64-v4 NUMBA_CPU_FEATURES=-prefer-256-bit treadle-server --warm; \
        fi; \
    else \
        treadle-server --warm; \
    fi \
    && chmod -R g=u,o=rX /var/cache/treadle
USER 10001:0

VOLUME /data
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["treadle-server", "--check-health"]
ENTRYPOINT ["treadle-server"]
