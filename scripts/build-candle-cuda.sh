#!/usr/bin/env bash
# Builds the plugin candle-cuda, without a GPU and without an installed CUDA toolkit: the compiler comes
# as wheels, and the CUDA libraries are linked by stand-ins that only have their names. The plugin finds
# the real ones when it is loaded: the driver, and CUDA 13's cublas, curand, nvrtc and cudart.
#
#   scripts/build-candle-cuda.sh [cargo options]
#
# CUDA_COMPUTE_CAP   the GPU to build for: 80 A100, 86 RTX 30, 89 RTX 40, 90 H100 (default 80; code for
#                    one generation also runs on later ones, which compile it when it is first used)
# CUDA_HOME          an installed toolkit to use in place of the wheels
# MAGRAY_CUDA_CACHE  where the wheels are kept (default ~/.cache/magray/cuda13)
set -euo pipefail
cd "$(dirname "$0")/../plugins/embed-candle/cuda"

if [ -z "${CUDA_HOME:-}" ]; then
    cache=${MAGRAY_CUDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/magray/cuda13}
    export CUDA_HOME=$cache/nvidia/cu13
    if [ ! -e "$cache/complete" ]; then
        python3 -m pip install --quiet --no-deps --upgrade --target "$cache" \
            nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
            nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
        chmod +x "$CUDA_HOME"/bin/* "$CUDA_HOME"/nvvm/bin/*
        touch "$cache/complete"
    fi
    # cudarc asks the toolkit's version of it otherwise.
    export CUDARC_CUDA_VERSION=13000
fi
export PATH=$CUDA_HOME/bin:$PATH CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

# A stand-in has the library's name and every function that cudarc may call.
cargo fetch --quiet --locked
cudarc=$(cargo metadata --format-version 1 --locked --offline |
    python3 -c 'import json, sys; print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
stubs=target/stubs
mkdir -p "$stubs"
stub() { # library, version, prefix of its functions, folder in cudarc
    grep -rhoE "\b$3[A-Z][A-Za-z0-9_]+" "$(dirname "$cudarc")/src/$4/sys" | sort -u |
        sed 's/.*/void &(void) {}/' >"$stubs/$1.c"
    cc -shared -fPIC -w -Wl,-soname,"lib$1.so.$2" -o "$stubs/lib$1.so" "$stubs/$1.c"
}
stub cuda 1 cu driver
stub cublas 13 cublas cublas
stub cublasLt 13 cublasLt cublaslt
stub curand 10 curand curand
stub nvrtc 13 nvrtc nvrtc
ln -sf "$(find -L "$CUDA_HOME" -name 'libcudart.so.13' | head -1)" "$stubs/libcudart.so"

RUSTFLAGS="${RUSTFLAGS:-} -L native=$PWD/$stubs" cargo build --release --locked "$@"
ls -l "$PWD"/target/release/libmagray_embed_candle_cuda_plugin.so
