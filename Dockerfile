# docker build -t sam-peft . && docker run --rm sam-peft          the demo
# docker run --rm --gpus all sam-peft sam-peft doctor --device cuda
# docker build --build-arg LOCKED=cu12 …                          for drivers of CUDA 12 (docs/gpu.md)
FROM python:3.12-slim

# libgl1 and libglib2.0-0: OpenCV's wheel loads them
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sam-peft
COPY . .
ARG LOCKED=
RUN make .venv/installed EXTRAS=[peft] LOCKED=$LOCKED
ENV PATH=/opt/sam-peft/.venv/bin:$PATH
CMD ["make", "demo"]
