# The kontorion server as an image: no compiler, no shell user, one program.
# It expects its database, event log and usage store elsewhere: see compose.yaml.

FROM rust:1.95.0-slim-bookworm AS build
# The toolchain of the image, without the components for development that rust-toolchain.toml asks for.
ENV RUSTUP_TOOLCHAIN=1.95.0
RUN apt-get -qq update \
 && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
      build-essential cmake pkg-config zlib1g-dev >/dev/null \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# The caches stay between builds and out of the image, so a change compiles only what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --locked --package server \
 && cp /target/release/kontorion /kontorion

FROM debian:bookworm-slim
# libz and libstdc++ for the Kafka client, curl for the health check.
RUN apt-get -qq update \
 && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
      ca-certificates curl libstdc++6 zlib1g >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --user-group --uid 10001 --home-dir /var/lib/kontorion --create-home \
      --shell /usr/sbin/nologin kontorion
COPY --from=build /kontorion /usr/local/bin/kontorion
USER kontorion
WORKDIR /var/lib/kontorion
ENV KONTORION_LISTEN=0.0.0.0:8080 \
    KONTORION_DATA_DIR=/var/lib/kontorion
VOLUME /var/lib/kontorion
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=6 \
  CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8080/healthz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kontorion"]
CMD ["serve"]
