#!/bin/sh
# Make a folder that holds Debian trixie with its RabbitMQ 4.x, for the tests: about 400 MB, a minute or two.
#
#     sudo tests/servers/get_rabbitmq4.sh /var/tmp/rabbitmq4
#     sudo FEDMQ_RABBITMQ4_ROOT=/var/tmp/rabbitmq4 python -m pytest -m rabbitmq
#
# Root is needed here and for the tests: the node runs in a chroot with /proc and /dev in a mount namespace
# of its own. Nothing outside the folder is changed.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
if ! command -v debootstrap >/dev/null; then
    echo "debootstrap is missing: apt-get install debootstrap" >&2
    exit 1
fi
debootstrap --variant=minbase --include=rabbitmq-server,ca-certificates trixie "$1"
# The node's name ends in @localhost, and the fresh system may not know that name.
grep -qs localhost "$1/etc/hosts" || echo "127.0.0.1 localhost" >> "$1/etc/hosts"
