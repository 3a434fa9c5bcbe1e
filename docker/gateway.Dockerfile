FROM python:3.11-slim-bookworm AS build
ENV PIP_PYTHON=/opt/flow-grpo/bin/python PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv --without-pip /opt/flow-grpo
# What the extra needs comes before the sources, so that an edit does not install it again.
COPY pyproject.toml constraints.txt LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md && pip install --constraint constraints.txt '.[gateway]'
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Flow-GRPO gateway" \
      org.opencontainers.image.description="Batching gateway before the reward services, with durable jobs and a page" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp flow \
    && install --directory --owner flow --group flow /var/lib/flow-grpo
COPY --from=build /opt/flow-grpo /opt/flow-grpo
COPY docker/ready.py /opt/ready.py
ENV PATH=/opt/flow-grpo/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8100
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s CMD ["python", "/opt/ready.py", "8100"]
ENTRYPOINT ["flow-grpo", "serve", "gateway", "--host", "0.0.0.0", "--port", "8100"]
CMD ["--config", "/etc/flow-grpo/gateway.yaml"]
