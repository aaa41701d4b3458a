# docker build -t talking-codebooks .
# docker build -t talking-codebooks:cpu --build-arg BASE=ubuntu:24.04 .
# docker run --gpus all --ipc host -v "$PWD/data:/app/data" -v "$PWD/log:/app/log" talking-codebooks \
#     torchrun --standalone --nproc-per-node=4 run.py --mode train --config config/vox-256.yaml
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}

# Python 3.12 of Ubuntu 24.04. MediaPipe and OpenCV load the graphics libraries.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv libegl1 libgl1 libgles2 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home researcher \
    && install -d -o researcher -g researcher /app /app/log /app/data /opt/venv

USER researcher
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH

COPY requirements.txt requirements-extra.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir -r requirements.txt -r requirements-extra.txt

COPY --chown=researcher . .
CMD ["python", "run.py", "--mode", "doctor", "--config", "config/vox-256.yaml"]
