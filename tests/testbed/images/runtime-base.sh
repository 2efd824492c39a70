#!/bin/sh
# Writes to the file $1, as a tar archive, a root file system of the make-up of distroless' `cc` with a user
# `nonroot`, from Debian's packages.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/packages" "$work/root"
cd "$work/packages"
# As whoever we are: apt's own user may not write here, and would say so.
apt-get --quiet --option APT::Sandbox::User=root download \
    base-files ca-certificates libc6 libgcc-s1 libgomp1 libstdc++6 netbase tzdata
for package in *.deb; do
    dpkg-deb --extract "$package" "$work/root"
done

cd "$work/root"
rm -rf usr/share/doc usr/share/man usr/share/lintian usr/share/locale usr/share/bug usr/sbin usr/bin
mkdir -p etc/ssl/certs home/nonroot tmp
cat usr/share/ca-certificates/mozilla/*.crt > etc/ssl/certs/ca-certificates.crt
cat > etc/passwd <<'END'
root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
END
cat > etc/group <<'END'
root:x:0:
nobody:x:65534:
nonroot:x:65532:
END
echo 'hosts: files dns' > etc/nsswitch.conf
chmod 1777 tmp
chown 65532:65532 home/nonroot
tar --create --file "$1" --sort=name --numeric-owner .
