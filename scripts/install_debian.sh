#!/bin/sh
# Install the Debian packages that are named, those of them that are missing; say what is needed where that is not allowed.
set -eu

missing=""
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then run=""; elif command -v sudo >/dev/null; then run="sudo"; else
    echo "these packages are needed, and only root can install them: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
$run apt-get update -qq
# A server's package would start it: the tests start their own, on free ports, and end them.
# shellcheck disable=SC2086
$run env RUNLEVEL=1 apt-get install --yes --quiet --no-install-recommends $missing >/dev/null
