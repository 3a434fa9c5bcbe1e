FROM python:3.11-slim-bookworm AS build
# Where torch comes from beside PyPI: its builds for the CPU. Empty takes PyPI's own, which is the one for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_PYTHON=/opt/flow-grpo/bin/python PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv --without-pip /opt/flow-grpo
# What the extra needs comes before the sources, so that an edit does not install it again.
COPY pyproject.toml constraints.txt LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md && pip install --constraint constraints.txt '.[trainer]'
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Flow-GRPO trainer" \
      org.opencontainers.image.description="Flow-GRPO training of text-to-image flow models" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp flow \
    && install --directory --owner flow --group flow /models /work/runs
COPY --from=build /opt/flow-grpo /opt/flow-grpo
ENV PATH=/opt/flow-grpo/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HF_HOME=/models PYTHONUNBUFFERED=1
COPY recipes /work/recipes
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["flow-grpo"]
CMD ["--help"]
