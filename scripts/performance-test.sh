#!/usr/bin/env bash
# The whole suite of measurements, each into a file of a folder, with a summary:
#
#   scripts/performance-test.sh [--quick] [FOLDER]
#
# FOLDER is target/performance/DATE where there is none. --quick measures parts of the data and finishes in some
# minutes. MAGRAY names the program, whose plugin files lie beside it; one is built where it is not given. Data are those
# of $MAGRAY_SHARED, else ../shared; what needs data that are not there is left out, and the summary says so. MODEL
# names a model in the data folder ($MAGRAY_HOME) for the embedding backends; the embedded one where it is not given.
# Exit 1 where a measurement failed.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
quick=
soak=30
if [ "${1:-}" = --quick ]; then
    quick=1
    soak=0.5
    shift
fi
case ${1:-} in -*) echo "usage: $0 [--quick] [FOLDER]" >&2 && exit 2 ;; esac
folder=${1:-$here/target/performance/$(date -u +%Y-%m-%dT%H%M%SZ)}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 2
data=${MAGRAY_SHARED:-$here/../shared}/data
if [ -z "${MAGRAY:-}" ]; then
    (cd "$here" && cargo build --release) || exit 1
    MAGRAY=$here/target/release/magray
fi
magray=("$MAGRAY" --quiet)
[ -z "${MODEL:-}" ] || magray+=(--model "$MODEL")
commands=$("$MAGRAY" bench --help)
summary=$folder/summary.txt
failed=0
{
    echo "magray performance test, $(date -u +%Y-%m-%dT%H:%M:%SZ)${quick:+, quick}"
    "$MAGRAY" --version
    uname -srm
    grep -m1 'model name' /proc/cpuinfo 2>/dev/null || true
    echo "load $(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null)"
} >"$summary"

# NAME, what it needs (a path, or -), the command. Prints go to NAME.txt, messages to NAME.log.
measure() {
    local name=$1 needs=$2 start=$SECONDS code
    shift 2
    printf '%-12s ' "$name" | tee -a "$summary"
    if [ "$needs" != - ] && [ ! -e "$needs" ]; then
        echo "left out: there is no $needs" | tee -a "$summary"
        return
    fi
    if "$@" >"$folder/$name.txt" 2>"$folder/$name.log"; then
        echo "done in $((SECONDS - start)) s" | tee -a "$summary"
    else
        code=$?
        failed=1
        echo "failed with $code after $((SECONDS - start)) s: $(tail -n1 "$folder/$name.log")" | tee -a "$summary"
    fi
}
# The same for a command of `magray bench`, where this program has it.
bench() {
    local name=$1 needs=$2
    shift 2
    if grep -qE "^  $name( |$)" <<<"$commands"; then
        measure "$name" "$needs" "${magray[@]}" bench "$name" "$@"
    else
        printf '%-12s left out: this program has no such bench\n' "$name" | tee -a "$summary"
    fi
}

texts=$data/corpora/wordnet.jsonl.gz
set=$data/scifact
bench quality "$set" --data "$set" ${quick:+--limit 100}
bench embed "$data/sts" --data "$data" ${quick:+--count 64 --runs 2 --queries 20}
bench index "$data/ann/minilm-100k-384-cos" --data "$data/ann/minilm-100k-384-cos" \
    --indexes flat,native ${quick:+--queries 100 --runs 1 --batch 1 --ef 100 --rescore 40}
bench cache "$data/traces" --trace "$data/traces/lirs_gli.u32.zst"
bench sync - ${quick:+--rows 10000 --runs 5}
bench retrieval "$set" --data "$set" ${quick:+--limit 100}
bench matrix "$set" --data "$set" --html "$folder/matrix.html" --resume "$folder/matrix.jsonl" \
    ${quick:+--limit 100 --runs 1 --requests 20000}
bench workload "$texts" --texts "$texts" ${quick:+--seconds 20 --records 2000}
# In half a minute memory only fills: the quick one judges errors.
bench soak "$texts" --texts "$texts" --minutes "$soak" ${quick:+--max-growth 1000000} --records 2000

if [ -z "${NO_CRITERION:-}" ]; then
    criterion=(cargo bench -p magray-benches --)
    [ -z "$quick" ] || criterion+=(--quick)
    cd "$here" || exit 2
    MAGRAY_DATA=$data measure criterion - "${criterion[@]}"
fi
echo
echo "in $folder: $(ls "$folder" | tr '\n' ' ')"
exit "$failed"
