# Two images: `docker build --target cpu --build-arg TORCH_INDEX=...` and `docker build --target cuda`. docs/deploy.md
#
# TORCH_INDEX is the address of torch's own index of CPU wheels, which torch's installation page names: the wheels of the
# default index carry CUDA, and are some 5 GB larger.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What runs, without any Python package.
FROM ${PYTHON_IMAGE} AS base
# Not pinned: Debian keeps one version of each in a release, and replaces it when it has a security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libtcmalloc-minimal4 tini \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/animegan/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# The wheel of this repository, with the shipped style and page in it.
FROM base AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY weights weights
COPY serve_app serve_app
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM base AS environment
RUN python -m venv /opt/animegan
COPY constraints.txt /build/

FROM environment AS packages-cpu
ARG TORCH_INDEX
RUN test -n "$TORCH_INDEX" || { echo "set the build argument TORCH_INDEX; docs/deploy.md says to what"; exit 1; }
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint /build/constraints.txt torch
COPY --from=wheel /wheel /build/wheel
COPY scripts/containers/install /build/
RUN sh /build/install fast,otel,postgres,s3
COPY scripts/containers/notices.py /build/
RUN python /build/notices.py > /opt/animegan/THIRD_PARTY_NOTICES.md

FROM environment AS packages-cuda
RUN pip install --no-cache-dir --constraint /build/constraints.txt torch
COPY --from=wheel /wheel /build/wheel
COPY scripts/containers/install /build/
RUN sh /build/install otel,postgres,s3
COPY scripts/containers/notices.py /build/
RUN python /build/notices.py > /opt/animegan/THIRD_PARTY_NOTICES.md

FROM base AS service
RUN useradd --create-home --uid 1000 animegan \
    && install --directory --owner=animegan --group=animegan --mode=0700 /var/lib/animegan /var/lib/animegan/styles \
    # where login shells look, whose PATH is Debian's; KubeRay may start Ray in one
    && ln -s /opt/animegan/bin/animegan /opt/animegan/bin/ray /opt/animegan/bin/serve /usr/local/bin/
COPY configs /etc/animegan/
USER 1000:1000
WORKDIR /home/animegan
ENV ANIMEGAN_DATA_DIR=/var/lib/animegan \
    ANIMEGAN_STYLES_DIR=/var/lib/animegan/styles \
    NUMBA_CACHE_DIR=/tmp/numba
VOLUME /var/lib/animegan
EXPOSE 8000
STOPSIGNAL SIGTERM
# /readyz answers 200 when a Stylizer has painted its first picture.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]
# tini reaps what Ray's processes leave behind; animegan stops them in order.
ENTRYPOINT ["tini", "--"]
CMD ["animegan", "run", "/etc/animegan/container.yaml"]

FROM service AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/animegan /opt/animegan

FROM service AS cpu
COPY --from=packages-cpu /opt/animegan /opt/animegan
