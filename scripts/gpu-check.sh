#!/usr/bin/env bash
# Checks the GPU path on a machine with CUDA and prints one table: whether the vectors are those of the CPU, texts a
# second by batch and length, memory, and how long an answer takes when the GPU goes away.
#   scripts/gpu-check.sh [MAGRAY] [MODEL]
# MAGRAY is the built program (target/release/magray), with its plugin files beside it; MODEL is a model of the data
# folder (all-MiniLM-L6-v2). PROFILE=NAME checks another profile than cuda.
# Exit codes: 0 all is well, 1 there is no GPU, 3 something is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/.."
magray=${1:-target/release/magray}
export MAGRAY_AI__EMBEDDING__MODEL_NAME=${2:-all-MiniLM-L6-v2}
profile=${PROFILE:-cuda}

[ -x "$magray" ] || { echo "error: $magray is not there; build it with: cargo build --release" >&2 && exit 3; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

verdict=0
row() { printf '%-44s %-34s %s\n' "$1" "$2" "${3:-}"; }
bad() { verdict=3 && row "$1" "$2" "BAD: $3"; }
# Objects of a list in JSON, one a line, and the value of a key in such a line.
objects() { tr -d '\n' | sed 's/},{/}\n{/g'; }
value() { grep -oE "\"$1\":(\"[^\"]*\"|[^,}]*)" | head -n 1 | cut -d: -f2- | tr -d '"' || true; }
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 >= b + 0) }'; }

code=0
info=$("$magray" gpu info --json 2>"$scratch/fault") || code=$?
case $code in
0) ;;
1) echo "no GPU: $(value absence <<<"$info")" >&2 && exit 1 ;;
*) cat "$scratch/fault" >&2 && exit 3 ;;
esac

row CHECK FIGURE VERDICT
row 'GPU 0' "$(objects <<<"$info" | value name)" "compute capability $(objects <<<"$info" | value capability)"

# Lines of this repository are the texts: real, of many lengths, and here on every machine.
cat docs/*.md README.md config/default.toml | awk 'length > 20' | head -n 512 >"$scratch/texts"
if rates=$("$magray" bench embed --texts "$scratch/texts" --backends "cpu,$profile" --order sorted --batch 64 --runs 3 --json); then
    rates=$(objects <<<"$rates")
    line=$(grep "\"name\":\"$profile\"" <<<"$rates" | grep '"texts_per_s"' | head -n 1)
    cosine=$(value min_cosine <<<"$line")
    device=$(value device <<<"$line")
    precision=$(value precision <<<"$line")
    if ! at_least "$cosine" 0.999; then
        bad 'parity: least cosine to cpu' "$cosine" 'it must be 0.999 or more'
    else
        row 'parity: least cosine to cpu' "$cosine" ok
    fi
    case $device in
    cpu*) bad 'device that ran' "$device, $precision" 'it is not the GPU' ;;
    *) row 'device that ran' "$device, $precision" ok ;;
    esac
    row 'texts/s of cpu, batch 64' "$(grep '"name":"cpu"' <<<"$rates" | grep '"texts_per_s"' | head -n 1 | value texts_per_s)"
    row "texts/s of $profile, batch 64" "$(value texts_per_s <<<"$line")"
else
    bad "cpu and $profile on the same texts" 'failed' 'see the message above'
fi

if rates=$("$magray" gpu benchmark --profile "$profile" --json); then
    while read -r line; do
        what="$(value tokens <<<"$line") tokens, batch $(value batch <<<"$line")"
        rate=$(value texts_per_s <<<"$line")
        memory=$(value device_bytes <<<"$line" | awk '{ printf "%.0f MiB", $1 / 1048576 }')
        if [ "$rate" = null ]; then
            row "$what" 'failed' "$(value fault <<<"$line")"
        else
            row "$what" "$(awk -v rate="$rate" 'BEGIN { printf "%.0f texts/s", rate }')" "$memory on the GPU"
        fi
    done < <(objects <<<"$rates" | grep '"texts_per_s"')
    best=$(objects <<<"$rates" | grep -o '"texts_per_s":[0-9.]*' | cut -d: -f2 | sort -g | tail -n 1)
    if at_least "$best" 1000; then
        row 'best texts/s' "$best" ok
    else
        bad 'best texts/s' "$best" 'more than 1000 are due'
    fi
    grep -o '"fault":"[^"]*","recommendation":"[^"]*"' <<<"$rates" | while read -r line; do
        row 'GPU health' "$(value fault <<<"$line")" "$(value recommendation <<<"$line")"
    done
else
    bad 'magray gpu benchmark' 'failed' 'see the message above'
fi

# The GPU goes away: the answer must come all the same, and say from where.
home=$scratch/home
mkdir "$home"
models=${MAGRAY_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/magray}/models
[ ! -d "$models" ] || ln -s "$models" "$home/models"
search() { "$magray" --data-dir "$home" --backend "$profile" "$@"; }
milliseconds() { # NAME COMMAND...: leaves the answer in $scratch/NAME
    local name=$1 start=$EPOCHREALTIME
    shift
    "$@" >"$scratch/$name" 2>"$scratch/$name.err" || return
    local end=$EPOCHREALTIME
    echo $(((${end/./} - ${start/./}) / 1000))
}
if search -q add 'The GPU went away and nobody noticed' >/dev/null && with=$(milliseconds with search search GPU --json) &&
    without=$(CUDA_VISIBLE_DEVICES=-1 milliseconds without search search GPU --json); then
    row 'start to answer with the GPU' "$with ms on $(value device <"$scratch/with")"
    device=$(value device <"$scratch/without")
    case $device in
    cpu*) row 'start to answer when it is gone' "$without ms on $device" ok ;;
    *) bad 'start to answer when it is gone' "$without ms on $device" 'it cannot have run there' ;;
    esac
    why=$(value fallback <"$scratch/without")
    case $why in
    '' | null) bad 'why it fell back' 'it does not say' 'a fallback must never be silent' ;;
    *) row 'why it fell back' "$why" ok ;;
    esac
else
    cat "$scratch"/with*.err >&2 || true
    bad 'an answer when the GPU is gone' 'none' "the chain of profile $profile must reach a CPU"
fi
exit $verdict
