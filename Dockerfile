# CPU:   docker build -t robgib .
# CUDA:  docker build -t robgib:cuda --build-arg COMPUTE=cuda .     (run with --gpus all; the host provides the driver)
#
# docker run --rm -v "$PWD:/work" -v robgib-cache:/cache robgib evaluate digits-cnn
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG COMPUTE=cpu
ARG EXTRAS=torchattacks
WORKDIR /source
RUN case "$COMPUTE" in \
      cpu)  pip install --no-cache-dir "torch>=2.6,<2.14" "torchvision>=0.21,<0.29" --index-url https://download.pytorch.org/whl/cpu ;; \
      cuda) pip install --no-cache-dir "torch>=2.6,<2.14" "torchvision>=0.21,<0.29" ;; \
      *)    echo "COMPUTE must be cpu or cuda, not $COMPUTE." >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY robgib robgib
COPY attacks attacks
COPY zoo zoo
COPY reports/ledger reports/ledger
# The version is that of the source; pyproject.toml bounds those of the others.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]" && rm -rf /source/*
RUN useradd --create-home --uid 1000 robgib && mkdir /cache /work && chown robgib /cache /work
USER 1000
ENV ROBGIB_CACHE=/cache
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["robgib"]
CMD ["--help"]
