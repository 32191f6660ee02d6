# One image for both services: fedmq in an environment of its own, and nothing that builds or fetches.

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY aggregator ./aggregator
COPY broker ./broker
COPY fedmq ./fedmq
COPY logistic ./logistic
COPY monitoring ./monitoring
COPY participant ./participant
COPY examples/heart_disease ./examples/heart_disease
# Without pip in it: what serves has no use for one.
RUN python -m venv --without-pip /opt/fedmq \
    && pip --python /opt/fedmq/bin/python install --no-cache-dir --disable-pip-version-check .

FROM python:3.12-slim
COPY --from=build /opt/fedmq /opt/fedmq
# The numbers are fixed: what is stored in a volume belongs to them. A named volume takes over the owner of the folder.
RUN groupadd --gid 10001 fedmq \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin fedmq \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/fedmq
ENV PATH=/opt/fedmq/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PROMETHEUS_DISABLE_CREATED_SERIES=true
USER 10001:10001
WORKDIR /var/lib/fedmq
ENTRYPOINT ["fedmq"]
CMD ["--help"]
