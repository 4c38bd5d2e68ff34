# Image for TPU hosts (GKE, xpk) and for Apache Beam workers that run `prepare`.
#
#   docker build --platform linux/amd64 --tag llama-cpt .
#   docker run llama-cpt llama_cpt.train configs/llama3/cpt_8b.py
#
# Arguments follow `python -m`. Configs of this checkout are in /llama_cpt/configs; paths in a config
# that are not gs:// must be mounted.
FROM python:3.12-slim

WORKDIR /llama_cpt
# Dependencies first: a change of the source does not install them again.
COPY requirements.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --requirement requirements.txt "libtpu>=0.0.42,<0.1"
COPY llama_cpt llama_cpt
COPY pallas_kernels pallas_kernels
COPY configs configs
RUN pip install --no-cache-dir ".[tpu]"

ENTRYPOINT ["python", "-m"]
