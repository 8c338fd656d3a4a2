#!/usr/bin/env bash
# Installs what is not a Python package, where it is missing (Debian, Ubuntu; needs root).
#
# DeepSpeed compiles its communication op with the system's compiler, Spark runs on the system's
# Java. The rest is for tests: several machines are made of network namespaces and reached by ssh,
# pdsh and Slurm; the chat page is tested in a real browser. Tests skip, by name, what is missing.
set -euo pipefail

declare -A packages=(
  [g++]=g++ [make]=make [ip]=iproute2 [ssh]=openssh-client [sshd]=openssh-server [pdsh]=pdsh
  [slurmd]=slurm-wlm [java]=openjdk-17-jre-headless [chromium]=chromium
  [chromedriver]=chromium-driver
)
missing=()
for program in "${!packages[@]}"; do
  PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done
if ((${#missing[@]} == 0)); then
  echo "all system packages are installed"
  exit
fi
echo "installing: ${missing[*]}"
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy "${missing[@]}"
