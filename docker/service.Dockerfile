# The web page, the REST API, migrations and the command line, without torch. From the root of the repository:
#   docker build --file docker/service.Dockerfile --tag whatfits-service:0.1.0 .
# Only the build needs a network, and there PyPI or what stands for it: --build-arg PIP_INDEX_URL=https://mirror.example/simple
# or, for a folder of wheels in the build's context or a volume, --build-arg PIP_FIND_LINKS=... --build-arg PIP_NO_INDEX=1.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The dependencies by themselves, so that a change of the sources does not install them again.
RUN python3 -m venv /opt/whatfits \
    && /opt/whatfits/bin/pip install --constraint constraints.txt --upgrade pip \
    && /opt/whatfits/bin/pip install --constraint constraints.txt --build-constraint constraints.txt '.[service]'
COPY . .
RUN /opt/whatfits/bin/pip install --build-constraint constraints.txt --no-deps --force-reinstall .

FROM ${BASE}
RUN groupadd --gid 10001 whatfits \
    && useradd --uid 10001 --gid whatfits --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin whatfits \
    && install --directory --owner=whatfits --group=whatfits --mode=0700 /data
COPY --from=build /opt/whatfits /opt/whatfits
# /data is the one folder written to: the SQLite file of a server that is told of no other database.
ENV PATH=/opt/whatfits/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/data XDG_DATA_HOME=/data HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["whatfits"]
CMD ["serve", "--no-agent", "--host", "0.0.0.0", "--port", "8000"]
