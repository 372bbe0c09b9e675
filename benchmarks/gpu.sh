#!/usr/bin/env bash
# Everything that a GPU has to show, in at most 9 minutes on one H100-class card, with nothing to download:
# the tests of tensors and stages, the demo from end to end, then encoding (with and without neighbours), memory and
# answering at the shapes of Llama 3 with random weights. Figures and one log are in $OUT.
#   bash benchmarks/gpu.sh
# ARCHITECTURES=tiny AMOUNTS="..." TESTS=FILE try the script itself on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-benchmarks/results/gpu}
tests=${TESTS:-tests/test_lora.py tests/test_training.py tests/test_neighbours.py tests/test_methods.py tests/test_stages.py}
architectures=${ARCHITECTURES:-llama3.2-1b llama3.2-1b:cot llama3-8b}
failed=0
mkdir -p "$out"
: > "$out/gpu.log"
if [ -d .wheels ]; then  # what the machine's image lacks, carried along: pip wheel -w .wheels PACKAGE ...
    python -m pip install --quiet --no-index --find-links .wheels .wheels/*.whl
fi

step() {  # NAME SECONDS COMMAND...
    echo "== $1"
    timeout "$2" "${@:3}" 2>&1 | tee -a "$out/gpu.log" | tail -n 25
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        echo "== $1 FAILED, or took more than $2 s: $out/gpu.log" | tee -a "$out/gpu.log"
        failed=1
    fi
}

step tests 110 python -m pytest -q -p no:cacheprovider $tests
if [ -z "${AMOUNTS:-}" ]; then
    export PRAG_ROOT="$(mktemp -d)"
    step demo 100 bash configs/demo.sh
fi
for architecture in $architectures; do
    case $architecture in
        *8b*) amounts="--passages 64 --published_passages 1 --questions 64 --published_questions 2 --repetitions 3" ;;
        *) amounts="--passages 256 --published_passages 2 --questions 256 --published_questions 4 --repetitions 5" ;;
    esac
    mode=direct
    [[ $architecture = *:cot ]] && mode=cot
    step "$architecture" 110 python benchmarks/speed.py --architecture "${architecture%:cot}" --mode $mode \
        ${AMOUNTS:-$amounts} --json "$out/speed_${architecture%:cot}_$mode.json"
done
exit $failed
