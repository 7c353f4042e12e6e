#!/usr/bin/env bash
# Whole-process figures that criterion cannot see: size of the program, its start, and one-shot
# searches over N records (100000 where none is given), each the median of 21 runs.
#   cargo build --release && benches/one-shot.sh [N]
set -euo pipefail
cd "$(dirname "$0")/.."
n=${1:-100000}
magray=$PWD/target/release/magray
export MAGRAY_HOME
MAGRAY_HOME=$(mktemp -d)
trap 'rm -rf "$MAGRAY_HOME"' EXIT

median() { # COMMAND...: milliseconds of wall time
    "$@" >/dev/null 2>&1 || true
    for _ in $(seq 21); do
        local start=$EPOCHREALTIME
        "$@" >/dev/null 2>&1 || true
        local end=$EPOCHREALTIME
        echo $(((${end/./} - ${start/./})))
    done | sort -n | awk 'NR == 11 { printf "%.1f ms\n", $1 / 1000 }'
}

row() { printf '%-52s %s\n' "$1" "$2"; }

row 'size of the program' "$(stat -c %s "$magray" | awk '{ printf "%.1f MiB", $1 / 1048576 }')"
row 'start (magray --version)' "$(median "$magray" --version)"
row 'start, three plugin files loaded, 1 record searched' "$(
    "$magray" -q add 'a single record' >/dev/null
    median "$magray" search record
)"

# Sentences of twelve words of this repository, drawn with a fixed seed.
cat docs/*.md config/*.toml host/src/*/*.rs | tr -cs '[:alpha:]' '\n' | sort -u >"$MAGRAY_HOME/words"
awk -v n="$n" 'BEGIN { srand(1) } { w[NR] = $1 } END {
    for (i = 0; i < n; i++) { s = i; for (j = 0; j < 12; j++) s = s " " w[1 + int(rand() * NR)]; print s } }' \
    "$MAGRAY_HOME/words" >"$MAGRAY_HOME/lines"
for index in flat hnsw; do
    # A graph takes a hundred times as long to build as a flat index, so it gets a tenth.
    [ $index = flat ] || n=$((n / 10))
    head -n "$n" "$MAGRAY_HOME/lines" >"$MAGRAY_HOME/part"
    home=$MAGRAY_HOME/$index
    start=$EPOCHREALTIME
    "$magray" --data-dir "$home" --index "$index" -q add --lines --file "$MAGRAY_HOME/part" >/dev/null
    end=$EPOCHREALTIME
    row "add --lines of $n texts, sealed by $index" "$(awk -v us=$((${end/./} - ${start/./})) -v n="$n" 'BEGIN { printf "%.1f s, %d texts/s", us / 1e6, n / us * 1e6 }')"
    row "one-shot search over $n records, $index" "$(median "$magray" --data-dir "$home" --index "$index" search 'how is a plugin loaded')"
    "$magray" --data-dir "$home" --index "$index" -q add 'one record more' >/dev/null
    row '  the same, with one record in the tail' "$(median "$magray" --data-dir "$home" --index "$index" search 'how is a plugin loaded')"
done
