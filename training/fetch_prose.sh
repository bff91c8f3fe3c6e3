#!/bin/sh
# Fetch and unpack the Debian packages (bookworm) whose documentation is the training prose, below
# runs/raw. Needs apt-get and dpkg; `apt-get update` first. Nothing is installed.
set -eu
mkdir -p runs/raw/debs runs/raw/x
cd runs/raw/debs
apt-get download sqlite3-doc python3.11-doc apache2-doc postgresql-doc-15 vim-runtime dict-jargon \
    wordnet-base
cd ..
for deb in debs/*.deb; do
    name=$(basename "$deb")
    folder="x/${name%%_*}"
    mkdir -p "$folder"
    dpkg -x "$deb" "$folder"
done
