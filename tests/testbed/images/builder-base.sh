#!/bin/sh
# Writes to the file $1, as a tar archive, a root file system of the make-up of Docker's `rust` images, slim: Debian
# with a C compiler's linker, and in /usr/local the Rust that is installed here.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. /etc/os-release
debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev "$VERSION_CODENAME" "$work/root" >&2
rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"

mkdir -p "$work/root/usr/local/cargo/bin"
cp -a "$(rustc --print sysroot)/." "$work/root/usr/local/cargo"
rm -rf "$work/root/usr/local/cargo/share"
# Packages may come through somebody whom only this machine's list of authorities knows.
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
tar --create --file "$1" --sort=name --numeric-owner --directory "$work/root" .
