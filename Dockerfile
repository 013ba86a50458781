# One image per service: `docker build --target router .`; `docker compose build` makes them all.
# Versions are those of requirements/dev.lock; each image gets what its service needs and no more.
# The base is pinned by tag; docs/operations.md ("Images") says how to pin it by digest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/requirements/dev.lock
WORKDIR /src
COPY requirements/dev.lock requirements/
COPY pyproject.toml README.md LICENSE ./
COPY dualmap dualmap
COPY proto proto
COPY services services
COPY sim sim
COPY cli cli
RUN python3 -m venv --without-pip /opt/dualmap

FROM build AS build-router
RUN pip --python /opt/dualmap/bin/python install --quiet '.[router]'

FROM build AS build-worker
RUN pip --python /opt/dualmap/bin/python install --quiet '.[worker]'

FROM build AS build-rebalancer
RUN pip --python /opt/dualmap/bin/python install --quiet '.[rebalancer]'

FROM build AS build-sim
RUN pip --python /opt/dualmap/bin/python install --quiet '.[sim]'

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --system --uid 10001 --no-create-home dualmap
ENV PATH=/opt/dualmap/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 10001

# Each check starts Python, for 0.07 s of CPU over HTTP and 0.19 s over gRPC, and a score of containers have one: seldom,
# but for those that others wait for.

FROM runtime AS router
COPY --from=build-router /opt/dualmap /opt/dualmap
ENV DUALMAP_ROUTER_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s CMD ["python", "-m", "dualmap_service.probe", "http://127.0.0.1:8000/readyz"]
ENTRYPOINT ["dualmap", "router"]

FROM runtime AS worker
COPY --from=build-worker /opt/dualmap /opt/dualmap
ENV DUALMAP_WORKER_HOST=0.0.0.0 DUALMAP_WORKER_GRPC_PORT=9500 DUALMAP_WORKER_TELEMETRY_PORT=9501
EXPOSE 9500 9501
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["python", "-m", "dualmap_service.probe", "grpc://127.0.0.1:9500"]
ENTRYPOINT ["dualmap", "worker"]

FROM runtime AS rebalancer
COPY --from=build-rebalancer /opt/dualmap /opt/dualmap
ENV DUALMAP_REBALANCER_METRICS_HOST=0.0.0.0
EXPOSE 9402
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["python", "-m", "dualmap_service.probe", "http://127.0.0.1:9402/readyz"]
ENTRYPOINT ["dualmap", "rebalancer"]

# The simulated engine, and the load generator against any OpenAI endpoint.
FROM runtime AS sim
COPY --from=build-sim /opt/dualmap /opt/dualmap
EXPOSE 8100 5557 5558
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["python", "-m", "dualmap_service.probe", "http://127.0.0.1:8100/health"]
ENTRYPOINT ["dualmap"]
CMD ["sim-engine", "--host", "0.0.0.0", "--port", "8100", "--kv-port", "5557"]

# One address in front of any number of routers.
FROM ${PYTHON_IMAGE} AS gateway
# The minor version that bookworm has for as long as it lives: its mirror changes only what follows, with fixes.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends 'haproxy=2.6.*' && rm -rf /var/lib/apt/lists/*
COPY deploy/haproxy.cfg /etc/haproxy/haproxy.cfg
USER haproxy
EXPOSE 8000
# haproxy drains on SIGUSR1; on SIGTERM it would cut what runs.
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=2s --timeout=5s --start-period=60s CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
