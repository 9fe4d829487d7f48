# docker build -t sam-peft . && docker run --rm sam-peft          the demo
# docker run --rm --gpus all sam-peft sam-peft doctor --device cuda
FROM python:3.12-slim

# git and make: the Makefile and the code's version; libgl1 and libglib2.0-0: OpenCV's wheel loads them
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sam-peft
COPY . .
RUN make .venv/installed
ENV PATH=/opt/sam-peft/.venv/bin:$PATH
CMD ["make", "demo"]
