# The image of Lictor: the program, and what it needs to run.
#
#   docker build .                        builds the program here, too
#   docker build --target prebuilt DIR    takes DIR/lictor, which was built elsewhere, against a C library no newer
#                                         than that of the runtime
#
# It needs nothing of BuildKit. What caching there is, comes of the order of the layers. Other images to build in and to
# run in may be given as BUILDER and RUNTIME; these have stages of their own, since what looks for newer versions does
# not look at arguments. Both are pinned to the digest of their index, which holds all architectures.
ARG BUILDER=rust
ARG RUNTIME=distroless

FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f AS distroless

FROM ${RUNTIME} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lictor" \
      org.opencontainers.image.description="A Kubernetes operator that keeps Consul true" \
      org.opencontainers.image.source="https://github.com/lictor-dev/lictor" \
      org.opencontainers.image.documentation="https://github.com/lictor-dev/lictor/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /
# By number: `runAsNonRoot` cannot judge a name.
USER 65532:65532
EXPOSE 9808
ENTRYPOINT ["/lictor"]
CMD ["run"]

# A builder that knows no better goes through this stage on its way to the last one: so it has to do without
# the program, which a pattern need not match.
FROM runtime AS prebuilt
COPY LICENSE licto[r] /

FROM docker.io/library/rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS rust

FROM ${BUILDER} AS builder
WORKDIR /src
ENV CARGO_PROFILE_RELEASE_LTO=fat \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
# The dependencies first, which seldom change: with empty programs in place of ours.
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
COPY demo/Cargo.toml demo/
COPY tests/testbed/Cargo.toml tests/testbed/
RUN mkdir --parents src bench/src demo/src tests/testbed/src \
    && echo 'fn main() {}' | tee src/main.rs bench/src/main.rs > demo/src/main.rs \
    && touch src/lib.rs tests/testbed/src/lib.rs \
    && cargo build --locked --release --package lictor
COPY src src
# Ours have to look newer than the empty ones.
RUN touch src/main.rs src/lib.rs \
    && cargo build --locked --release --package lictor \
    && mv target/release/lictor /lictor

FROM runtime
COPY LICENSE /
COPY --from=builder /lictor /
