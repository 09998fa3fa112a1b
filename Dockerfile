# One image for every command, made by the steps that `make` makes on any machine.
# TORCH_INDEX empty: PyPI's torch, which brings CUDA. For CPUs: https://download.pytorch.org/whl/cpu
FROM python:3.12-slim

# make for the steps; a C compiler because Triton builds the launchers of its kernels at run time.
RUN apt-get update && apt-get install -y --no-install-recommends make gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home headrace && mkdir -p /home/headrace/.cache /home/headrace/.local/share \
    && chown -R headrace:headrace /home/headrace
WORKDIR /srv/headrace
ENV PATH=/opt/headrace/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
ARG TORCH_INDEX=

COPY Makefile pyproject.toml constraints.txt ./
RUN make torch VENV=/opt/headrace TORCH_INDEX=${TORCH_INDEX}
COPY . .
RUN make install VENV=/opt/headrace TORCH_INDEX=${TORCH_INDEX}

USER headrace
EXPOSE 8000
# An orderly stop, as on a terminal.
STOPSIGNAL SIGTERM
ENTRYPOINT ["headrace"]
CMD ["serve", "--host", "0.0.0.0"]
