# Serves a model without a network. CPU: docker build -t unimed .
# CUDA: docker build -t unimed-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Bounds of pyproject.toml; torch comes first, so that the rest does not fetch another build of it.
RUN pip install --no-cache-dir "torch>=2.9,<2.15" "torchvision>=0.24,<0.30" --index-url ${TORCH_INDEX}

WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs ./configs
COPY unimed ./unimed
RUN pip install --no-cache-dir ".[serve,dicom,mcp]" && rm -rf /build/*

RUN useradd --create-home --uid 10001 unimed && mkdir /state && chown unimed /state
USER unimed
WORKDIR /home/unimed
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False PYTHONUNBUFFERED=1 UNIMED_CACHE=/state/cache

VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGINT
ENTRYPOINT ["unimed", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--tokens", "/run/secrets/users", "--root", "/data", "--state", "/state/serve"]
