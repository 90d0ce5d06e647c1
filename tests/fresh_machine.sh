#!/usr/bin/env bash
# Proves that both commands of the README work on a machine that has nothing: makes a minimal Debian in a folder, puts a
# clone of this repository into it, and runs ./quickstart.sh (twice) and ./test.sh there under chroot.
#
#   tests/fresh_machine.sh bookworm|trixie [--keep FOLDER] [--only quickstart|test]
#
#   --keep FOLDER   make the machine in FOLDER and leave it there (kept outside the repository, /tmp by default)
#   --only NAME     run one of the two commands
#
# Needs root, debootstrap and git. What is tested is HEAD: uncommitted changes are not in the clone. Times are printed.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  echo "fresh_machine: $1; see the beginning of $0" >&2
  exit 2
}
release=""
keep=""
only=""
while [ $# -gt 0 ]; do
  case "$1" in
    bookworm | trixie) release=$1; shift ;;
    --keep) [ $# -ge 2 ] || usage "--keep needs a folder"; keep=$2; shift 2 ;;
    --only) [ $# -ge 2 ] || usage "--only needs a name"; only=$2; shift 2 ;;
    *) usage "unexpected argument $1" ;;
  esac
done
[ -n "$release" ] || usage "which release? bookworm or trixie"
case "$only" in "" | quickstart | test) ;; *) usage "--only takes quickstart or test" ;; esac
[ "$(id -u)" -eq 0 ] || usage "debootstrap and chroot need root"
command -v debootstrap >/dev/null || usage "debootstrap is missing: apt-get install debootstrap"

# Mounts are made in a namespace of their own: they end with this script, however it ends.
if [ "${LOCKSTEP_FRESH_MACHINE_INSIDE:-}" != yes ]; then
  arguments=("$release")
  if [ -n "$keep" ]; then arguments+=(--keep "$keep"); fi
  if [ -n "$only" ]; then arguments+=(--only "$only"); fi
  LOCKSTEP_FRESH_MACHINE_INSIDE=yes exec unshare --mount --propagation private "$0" "${arguments[@]}"
fi

if [ -n "$keep" ]; then
  mkdir -p "$keep"
  root=$(cd "$keep" && pwd)
else
  root=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-$release-XXXXXX")
fi
clean_up() {
  for folder in dev proc sys; do umount --recursive --lazy "$root/$folder" 2>/dev/null || true; done
  if [ -z "$keep" ]; then rm -rf --one-file-system "$root"; fi
}
trap clean_up EXIT

# Where this machine gets its packages from, proxies and certificates included, the new one gets them from too.
# shellcheck disable=SC2016  # apt's own variable
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/\{0,1\}$' || true)
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
if [ -n "${http_proxy:-}" ]; then export http_proxy; fi
if [ -n "${https_proxy:-}" ]; then export https_proxy; fi

clock=$SECONDS
lap() {
  printf '== %s %s: %d s\n' "$release" "$1" $((SECONDS - clock))
  clock=$SECONDS
}

echo "== $release: a bare system in $root"
if [ ! -e "$root/etc/debian_version" ]; then
  debootstrap --variant=minbase "$release" "$root" ${mirror:+"$mirror"} >"$root.debootstrap.log" 2>&1 ||
    { tail -n 20 "$root.debootstrap.log" >&2; exit 1; }
  rm -f "$root.debootstrap.log"
fi
for file in /etc/resolv.conf /etc/hosts; do cat "$file" >"$root$file" 2>/dev/null || true; done
apt-config dump | grep -E '^Acquire::(https?::(Proxy|CAInfo|Verify)|Check-)' >"$root/etc/apt/apt.conf.d/90host" || true
certificates=$(apt-config shell file Acquire::https::CAInfo | sed -n "s/^file='\(.*\)'$/\1/p")
if [ -n "$certificates" ] && [ -e "$certificates" ]; then install -D -m 644 "$certificates" "$root$certificates"; fi

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
lap "bare system"

rm -rf "$root/root/lockstep"
git clone --quiet --no-hardlinks "$repository" "$root/root/lockstep"

inside() {
  chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    TERM="${TERM:-dumb}" sh -c "cd /root/lockstep && $1" </dev/null
}
if [ "$only" != test ]; then
  inside ./quickstart.sh
  lap "quickstart.sh"
  inside ./quickstart.sh
  lap "quickstart.sh, the second time"
fi
if [ "$only" != quickstart ]; then
  inside .ci/run
  lap "test.sh"
fi
echo "== $release: everything passed"
