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
    touch README.md && pip install --constraint constraints.txt '.[geneval-mmdet]'
# mmengine asks for the OpenCV with windows, whose libraries an image has not; it lies over the one without.
# mmcv-lite builds with the torch that is there, and with a setuptools that still has pkg_resources.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip uninstall --yes opencv-python \
    && pip install --constraint constraints.txt --no-deps --force-reinstall opencv-python-headless \
    && pip install --constraint constraints.txt 'setuptools<81' wheel \
    && pip install --constraint constraints.txt --no-deps --no-build-isolation mmcv-lite
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Flow-GRPO geneval with mmdet" \
      org.opencontainers.image.description="GenEval as a reward over HTTP, its detector run by mmdet" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp flow \
    && install --directory --owner flow --group flow /models
COPY --from=build /opt/flow-grpo /opt/flow-grpo
COPY docker/ready.py /opt/ready.py
ENV PATH=/opt/flow-grpo/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HF_HOME=/models
USER 10001:10001
WORKDIR /tmp
EXPOSE 8101
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s CMD ["python", "/opt/ready.py", "8101"]
ENTRYPOINT ["flow-grpo", "serve", "geneval", "--host", "0.0.0.0", "--port", "8101"]
