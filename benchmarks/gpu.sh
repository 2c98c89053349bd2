#!/bin/sh
# Everything that only a GPU can show: kernels against their formulas, then every benchmark, each under a time limit.
#
#     sh benchmarks/gpu.sh results/                               # all parts: 22 minutes at most, by their limits
#     sh benchmarks/gpu.sh results/ kernels inference             # these alone
#
# Where a call may take ten minutes, two calls do; most parts end well before their limits:
#
#     sh benchmarks/gpu.sh results/ kernels rehearsal training_light tune    # 560 s at most
#     sh benchmarks/gpu.sh results/ inference training mamba                 # 460 s at most
#     sh benchmarks/gpu.sh results/ doctor lam                               # 270 s at most
#
# Needed: torch for CUDA with its triton, numpy, click and pytest; for all but doctor, kernels, inference and tune also pydantic
# (with pydantic-core, annotated-types, typing-inspection), safetensors, PyYAML and pyvips with its binary (pyvips-binary, cffi,
# pycparser); a C compiler and the headers of Python, with which Triton builds what launches its kernels. drct itself must be importable: installed, or PYTHONPATH=src. PYTHON=python3.12 takes another Python than
# python, or python3 where there is none.
#
# Each part writes NAME.txt (what it printed) and, where it can, NAME.json; a part that fails does not keep the others from running.
set -u
parts="doctor kernels rehearsal inference tune training training_light mamba lam"
out=${1:?usage: sh benchmarks/gpu.sh FOLDER [PART...]}
shift
wanted=" ${*:-$parts} "
for name in $wanted; do
    case " $parts " in *" $name "*) ;; *)
        echo "there is no part '$name': choose from $parts" >&2
        exit 2
        ;;
    esac
done
python=${PYTHON:-$(command -v python || echo python3)}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
export PYTHONUNBUFFERED=1 # a part that is stopped shall not take what it printed along
failed=0

part() { # name, seconds at most, command
    name=$1 limit=$2
    shift 2
    case "$wanted" in *" $name "*) ;; *) return ;; esac
    echo "== $name: $*"
    if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then tail -n 25 "$out/$name.txt"; else
        echo "   failed with exit code $?; the end of $out/$name.txt:"
        tail -n 8 "$out/$name.txt"
        failed=1
    fi
}

part doctor 90 "$python" -m drct doctor
part kernels 300 "$python" -m pytest -vv "$here/../tests/engine/test_gpu.py" "$here/../tests/engine/test_gpu_attention.py" \
    "$here/../tests/engine/test_gpu_scan.py"
part rehearsal 90 "$python" "$here/rehearsal.py" "$here/../options/train/drct_light_x4_gpu.yml" --json "$out/rehearsal.json"
part inference 240 "$python" "$here/inference.py" drct drct_light --device cuda --precisions bf16 --sizes 640x480 --turns 3 \
    --json "$out/inference.json"
part training 110 "$python" "$here/training.py" --model drct --batch 4 32 --patch 64 --pairs 3 --json "$out/training.json"
part training_light 50 "$python" "$here/training.py" --model drct_light --batch 32 --patch 64 --pairs 3 --json "$out/training_light.json"
part mamba 110 "$python" "$here/mamba.py" --device cuda --groups 6 --channels 180 308 --json "$out/mamba.json"
part lam 180 "$python" "$here/lam.py" --device cuda --sizes 32 64 --json "$out/lam.json"
part tune 120 "$python" "$here/inference.py" drct --device cuda --sizes 640x480 --turns 3 --tune --json "$out/tune.json"
exit $failed
