#!/bin/sh
# Everything that only a GPU can show, in one go: kernels against their formulas, then every benchmark, each under a time limit.
#
#     sh benchmarks/gpu.sh results/            # 16 minutes at most, by its limits; PYTHON=python3.12 for another Python
#
# Each part writes NAME.txt (what it printed) and, where it can, NAME.json; a part that fails does not keep the others from running.
set -u
out=${1:?usage: sh benchmarks/gpu.sh FOLDER}
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
failed=0

part() { # name, seconds at most, command
    name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then tail -n 25 "$out/$name.txt"; else
        echo "   failed with exit code $?; the end of $out/$name.txt:"
        tail -n 8 "$out/$name.txt"
        failed=1
    fi
}

part doctor 60 "$python" -m drct doctor
part kernels 180 "$python" -m pytest -q "$here/../tests/engine/test_gpu.py" "$here/../tests/engine/test_gpu_attention.py" \
    "$here/../tests/engine/test_gpu_scan.py"
part inference 300 "$python" "$here/inference.py" drct drct_light --device cuda --precisions bf16 --sizes 640x480 --turns 10 --tune \
    --json "$out/inference.json"
part training 180 "$python" "$here/training.py" --model drct --batch 4 32 --patch 64 --pairs 5 --json "$out/training.json"
part training_light 60 "$python" "$here/training.py" --model drct_light --batch 32 --patch 64 --pairs 5 --json "$out/training_light.json"
part mamba 120 "$python" "$here/mamba.py" --device cuda --groups 6 --channels 180 308 --json "$out/mamba.json"
part lam 60 "$python" "$here/lam.py" --device cuda --sizes 32 64 --json "$out/lam.json"
exit $failed
