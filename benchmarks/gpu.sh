#!/usr/bin/env bash
# One GPU: ResNet-18 at 32 x 32, 10,000 images, FGSM and PGD-20, four layers, a page. Prints the time, the passes, the time
# that as many bare passes of the network take (the floor), and the floor's share of the attacks' time.
#
#     benchmarks/gpu.sh [cuda|cpu] [images]
#
# The pictures are noise and the weights random, labelled as the network answers: neither time nor passes depend on them
# but for the images that an attack has already fooled.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python benchmarks/gpu.py --device "${1:-cuda}" --images "${2:-10000}"
