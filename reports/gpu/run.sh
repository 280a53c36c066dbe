#!/usr/bin/env bash
# Runs the scripts of this folder in order, each under its time limit; one that fails does not stop the next.
#
#   bash reports/gpu/run.sh [--dry-run] [WHEELS] [SCRIPT ...]
#
# WHEELS: a folder of wheels (wheels.txt), installed beside what the machine has. SCRIPT: some of correctness
# (140 s), profile_models (230 s), speed (240 s), cifar10 (150 s; CIFAR names its images); all by default, 12.7
# minutes. Where one command may take ten minutes, name the first two, then the others. Results go to $OUT.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
export OUT=${OUT:-$root} PYTHONUNBUFFERED=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
dry=()
if [ "${1:-}" = --dry-run ]; then dry=(--dry-run); shift; fi
if [ -d "${1:-}" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$1"/*.whl \
    || echo "some wheels could not be installed; scripts say what they miss"
  PYTHONPATH=$PYTHONPATH:$site
  shift
fi
declare -A budget=([correctness]=140 [profile_models]=230 [speed]=240 [cifar10]=150)
[ $# -gt 0 ] || set -- correctness profile_models speed cifar10
summary=()
for name in "$@"; do
  if [ -z "${budget[$name]:-}" ]; then
    summary+=("$name: there is no such script; there are ${!budget[*]}")
    continue
  fi
  words=("$root/reports/gpu/$name.py" --budget "${budget[$name]}" ${dry[@]+"${dry[@]}"})
  [ "$name" = cifar10 ] && [ -n "${CIFAR:-}" ] && words+=(--data "$CIFAR")
  echo "== $name"
  began=$SECONDS
  timeout -k 10 $((budget[$name] + ${#dry[@]} * 600 + 40)) python3 "${words[@]}"
  summary+=("$name: exit code $? after $((SECONDS - began)) s")
done
printf '%s\n' "${summary[@]}"
