# One image for every process of ours: `docker run IMAGE gateway`, `... stage order`, `... deploy`. compose.yaml has them all.
# The servers (Redpanda, Redis, Postgres, nginx) are images of their own.

FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/thrones
ENV PATH=/opt/thrones/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# Dependencies before the code: this layer changes only with the pins. `-c`: exactly the locked versions, of which an
# image needs neither the local stack's servers nor the tools (the extras in pyproject.toml).
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted.txt \
 && pip install -r wanted.txt -c requirements.lock
COPY README.md LICENSE thrones.py ./
COPY schemas schemas
COPY infra infra
COPY sale sale
COPY gateway gateway
COPY streams streams
COPY consumers consumers
COPY bench bench
RUN pip install --no-deps . \
 && pip uninstall -y pip setuptools

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/thrones --create-home thrones
COPY --from=build /opt/thrones /opt/thrones
ENV PATH=/opt/thrones/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    THRONES_STATE_DIR=/var/lib/thrones \
    LISTEN_ADDRESS=0.0.0.0 \
    METRICS_PORT=9100
USER thrones
WORKDIR /var/lib/thrones
# SIGTERM drains (up to 25 s): `docker stop --timeout 30`, as compose.yaml has it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["thrones"]
CMD ["--help"]
