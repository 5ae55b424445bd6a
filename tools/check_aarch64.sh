#!/usr/bin/env bash
# Runs the on-device checker under an emulated 64-bit Arm processor: real Arm code, without a phone.
#
#     tools/check_aarch64.sh MODEL.tflite [MORE.tflite ...] [flags of tflite/check.py]
#
# Needs debootstrap, dpkg and qemu-user-static (Debian: apt-get install debootstrap qemu-user-static), pip, and
# root for debootstrap. On the first call it unpacks Debian's arm64 Python, NumPy and ai-edge-litert 1.4.0 into
# AARCH64_ROOT (default ~/.cache/drcn_aarch64, some 500 MB). Newer ai-edge-litert crashes under qemu.
# Emulated times say nothing about a phone's: use small models (--lr_height=32 --lr_width=32) and patience.
set -euo pipefail

litert=1.4.0
root=${AARCH64_ROOT:-$HOME/.cache/drcn_aarch64}
qemu=qemu-aarch64-static
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ $# -eq 0 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
for command in debootstrap dpkg "$qemu" python3; do
    if ! command -v "$command" >/dev/null; then
        echo "check_aarch64.sh: error: $command not found (apt-get install debootstrap dpkg qemu-user-static)" >&2
        exit 2
    fi
done

if [ ! -e "$root/complete" ]; then
    if [ -e "$root" ] && [ -n "$(ls -A "$root")" ]; then
        echo "check_aarch64.sh: error: $root holds something else; expected no such folder, or an empty one" >&2
        exit 2
    fi
    echo "Unpacking an arm64 Python into $root ..." >&2
    # Beside its place and renamed when it is whole: an interrupted run leaves nothing.
    building=$root.building.$$
    trap 'rm -rf "$building"' EXIT
    trap 'echo "check_aarch64.sh: error: interrupted" >&2; exit 130' INT TERM
    mkdir -p "$building/wheels"
    debootstrap --foreign --arch=arm64 --variant=minbase \
        --include=python3-minimal,libpython3-stdlib,libstdc++6,libffi8,libexpat1,libgomp1 \
        bookworm "$building/system" >"$building/debootstrap.log" || { tail -n 5 "$building/debootstrap.log" >&2; exit 2; }
    # --foreign leaves the packages that are not essential packed.
    for package in "$building"/system/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" "$building/system"
    done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 --dest "$building/wheels" "ai-edge-litert==$litert" "numpy>=2,<3"
    for wheel in "$building"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$building/packages"
    done
    touch "$building/complete"
    mv -T "$building" "$root"
    trap - EXIT INT TERM
fi

python=("$qemu" -L "$root/system" "$root/system/usr/bin/python3.11")
quoted="$qemu -L '$root/system' '$root/system/usr/bin/python3.11'"
export PYTHONPATH="$root/packages" PYTHONDONTWRITEBYTECODE=1
exec "${python[@]}" "$here/tflite/check.py" --python="$quoted" --runs=3 --warmup=0 --timeout=3600 "$@"
