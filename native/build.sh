#!/bin/sh
# Builds the programs of the sandbox, and the library that runtimes load, for each supported processor, into
# native/linux-<arch>/ or into the folder that the first argument names. Needs gcc 14.2 for both processors, as the packages
# gcc-14 and gcc-14-aarch64-linux-gnu of Debian 13 have it. The same compiler always makes the same bytes.
set -eu
into=$(realpath "${1:-$(dirname "$0")}")
cd "$(dirname "$0")"
flags="-std=c11 -Os -Wall -Wextra -Werror -nostdlib -nostartfiles -ffreestanding
  -fno-stack-protector -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -fno-ident
  -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -s"
program="$flags -static -fno-pie -no-pie"
library="$flags -shared -fPIC -Wl,-z,norelro"
build() {
  mkdir -p "$into/$1"
  # The flags are a list of words.
  # shellcheck disable=SC2086
  "$2" $program ${3:-} -o "$into/$1/copilotfleet-sandbox" launcher.c
  # shellcheck disable=SC2086
  "$2" $program ${3:-} -o "$into/$1/copilotfleet-network" network.c
  # shellcheck disable=SC2086
  "$2" $library ${3:-} -o "$into/$1/copilotfleet-nodelay.so" nodelay.c
}
build linux-x64 "${CC_X64:-x86_64-linux-gnu-gcc-14}" -fcf-protection=none
build linux-arm64 "${CC_ARM64:-aarch64-linux-gnu-gcc-14}"
