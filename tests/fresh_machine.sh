#!/usr/bin/env bash
# Proves that both commands of the README work on a machine that has nothing: makes a minimal Debian in a folder, puts a
# clone of this repository into it, and runs ./quickstart.sh (twice) and ./test.sh there under chroot.
#
#   tests/fresh_machine.sh bookworm|trixie [--keep FOLDER] [--only quickstart|test] [--limits]
#   tests/fresh_machine.sh --check NAME LOG
#
#   --keep FOLDER   make the machine in FOLDER and leave it there (kept outside the repository, /tmp by default)
#   --only NAME     run one of the two commands
#   --limits        fail when quickstart's clean build takes 300 s or more, or the test suite 600 s: for two idle cores
#   --check         only judge the output of a run: NAME is quickstart, again (its second run) or test
#
# Needs root, debootstrap and git. What is tested is HEAD: uncommitted changes are not in the clone. Times are printed. Passes
# when both commands succeed, the sample of the first quickstart.sh holds C++ beyond its prompts, and the second has nothing
# left to train.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  echo "fresh_machine: $1; see the beginning of $0" >&2
  exit 2
}
fail() {
  echo "fresh_machine: $1" >&2
  exit 1
}

# seconds_of STEP LOG: how long "[STEP/n] ..." of quickstart.sh or test.sh took, from its line "took m:ss"; 0 without one.
seconds_of() {
  awk -v step="$1" '
    /^\[[0-9]+\/[0-9]+\] / { is_in_step = index($0, "[" step "/") == 1 }
    is_in_step && $1 == "took" { split($2, time, ":"); seconds = time[1] * 60 + time[2] }
    END { print seconds + 0 }' "$2"
}
# What generate wrote, without the prompts that it repeats. It ends where quickstart.sh says that it is done.
sample_of() {
  awk '
    /^Done in / { is_sample = 0 }
    is_sample && /^ +took [0-9]+:[0-9]+$/ { next }
    prompt != "" && index($0, prompt) == 1 { $0 = substr($0, length(prompt) + 1) }
    { prompt = "" }
    sub(/^--- after: /, "") { prompt = $0; is_sample = 1; next }
    is_sample { print }' "$1"
}
check_time() {
  if [ "$2" -eq 0 ]; then fail "nothing says how long the $1 took"; fi
  echo "== $1: $2 s on $(nproc) cores"
  if [ "$limits" = yes ] && [ "$2" -ge "$3" ]; then fail "the $1 took $2 s; less than $3 s are expected"; fi
}
# check NAME LOG: fails unless the output in LOG is what NAME (quickstart, again or test) must print.
check() {
  local sample
  case "$1" in
    quickstart)
      sample=$(sample_of "$2")
      grep -q '[^[:space:]]' <<<"$sample" || fail "quickstart.sh wrote no sample"
      grep -qwE '#include|#define|template|namespace|class|struct|const|typedef' <<<"$sample" ||
        fail "the sample of quickstart.sh does not look like C++"
      check_time "clean build" "$(seconds_of 2 "$2")" 300
      ;;
    again) grep -q 'steps are done already' "$2" || fail "quickstart.sh trained once more instead of going on where it was" ;;
    test) check_time "test suite" "$(seconds_of 3 "$2")" 600 ;;
    *) usage "--check takes quickstart, again or test" ;;
  esac
}

release=""
keep=""
only=""
limits=no
while [ $# -gt 0 ]; do
  case "$1" in
    bookworm | trixie) release=$1; shift ;;
    --keep) [ $# -ge 2 ] || usage "--keep needs a folder"; keep=$2; shift 2 ;;
    --only) [ $# -ge 2 ] || usage "--only needs a name"; only=$2; shift 2 ;;
    --limits) limits=yes; shift ;;
    --check) [ $# -eq 3 ] || usage "--check needs a name and a log"; check "$2" "$3"; exit 0 ;;
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
  if [ "$limits" = yes ]; then arguments+=(--limits); fi
  LOCKSTEP_FRESH_MACHINE_INSIDE=yes exec unshare --mount --propagation private "$0" "${arguments[@]}"
fi

if [ -n "$keep" ]; then
  mkdir -p "$keep"
  root=$(cd "$keep" && pwd)
else
  root=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-$release-XXXXXX")
fi
output=$(mktemp)
clean_up() {
  rm -f "$output"
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
    TERM="${TERM:-dumb}" sh -c "cd /root/lockstep && $1" </dev/null 2>&1 | tee "$output"
}
if [ "$only" != test ]; then
  inside ./quickstart.sh
  lap "quickstart.sh"
  check quickstart "$output"
  inside ./quickstart.sh
  lap "quickstart.sh, the second time"
  check again "$output"
fi
if [ "$only" != quickstart ]; then
  inside .ci/run
  lap "test.sh"
  check test "$output"
fi
echo "== $release: everything passed"
