# An agent, which measures on this machine's devices: the same with torch, transformers and the optimizers' libraries.
#   docker build --file docker/agent.Dockerfile --tag whatfits-agent:0.1.0 .
# CUDA comes with torch's wheel and the driver from the host (NVIDIA Container Toolkit). Without a GPU torch's CPU wheels
# make a much smaller image: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# Only the build needs a network: see docker/service.Dockerfile.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The dependencies by themselves, so that a change of the sources does not install torch again.
RUN python3 -m venv /opt/whatfits \
    && /opt/whatfits/bin/pip install --constraint constraints.txt --upgrade pip \
    && /opt/whatfits/bin/pip install --constraint constraints.txt --build-constraint constraints.txt '.[agent,optimizers]'
COPY . .
RUN /opt/whatfits/bin/pip install --build-constraint constraints.txt --no-deps --force-reinstall .

FROM ${BASE}
# torchao's optimizers and Triton's kernels are compiled on first use, whatever the compiler's version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 whatfits \
    && useradd --uid 10001 --gid whatfits --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin whatfits \
    && install --directory --owner=whatfits --group=whatfits --mode=0700 /data
COPY --from=build /opt/whatfits /opt/whatfits
# /data holds what outlives a measurement; compiled kernels go to /tmp.
ENV PATH=/opt/whatfits/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/data XDG_DATA_HOME=/data HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["whatfits"]
CMD ["agent", "--slot", "gpu0"]
