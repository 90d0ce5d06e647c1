#!/usr/bin/env bash
# cluster/install-deps.sh with stand-ins for apt, dpkg, sudo and id: what it installs as whom, and what it says when it cannot.
#
#   install_deps_test.sh PATH/TO/install-deps.sh
set -euo pipefail
script=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Only these programs are on PATH, so that nothing of this machine's apt or sudo is ever called.
mkdir "$folder/bin" "$folder/bare"
for program in bash env sed grep tail mktemp rm sleep; do
  ln -s "$(command -v "$program")" "$folder/bin/$program"
  ln -s "$(command -v "$program")" "$folder/bare/$program"
done
stand_in() {
  { printf '#!/usr/bin/env bash\n' && cat; } >"$folder/bin/$1"
  chmod +x "$folder/bin/$1"
}
stand_in dpkg-query <<'END'
grep -qx "${*: -1}" "$FOLDER/installed" && echo installed
END
stand_in apt-cache <<'END'
[ -e "$FOLDER/lists" ]
END
# Notes what it does and as whom. Fails with the next of $FOLDER/failures, as long as there are any.
stand_in apt-get <<'END'
words=" $* "
case "$words" in *" -o DPkg::Lock::Timeout=600 "*) ;; *) echo "apt-get without a time to wait: $*" >>"$FOLDER/notes" ;; esac
names=${words##* --no-install-recommends }
if [[ $words = *" update "* ]]; then did=update; else did="install ${names% }"; fi
echo "${AS:-self}: $did" >>"$FOLDER/notes"
if [ -s "$FOLDER/failures" ]; then
  sed -n 1p "$FOLDER/failures"
  sed -i 1d "$FOLDER/failures"
  exit 100
fi
if [ "$did" = update ]; then : >"$FOLDER/lists"; else printf '%s\n' ${names} >>"$FOLDER/installed"; fi
END
# $SUDO is free (no password), asks (and is answered) or refuses.
stand_in sudo <<'END'
case "$1 $SUDO" in
  "-n free" | "-v free" | "-v asks") exit 0 ;;
  -*)
    echo "sudo $1: a password is required, or this is not allowed" >&2
    exit 1
    ;;
esac
AS=sudo exec "$@"
END
stand_in id <<'END'
echo "$USER_ID"
END

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
expect_output() {
  if ! grep -qF -- "$2" "$folder/out"; then
    printf '%s\n  expected: %s\n  found:\n' "$1" "$2"
    cat "$folder/out"
    failures=$((failures + 1))
  fi
}
# machine LISTS MISSING...: all packages are installed but MISSING; apt has its lists when LISTS is "lists".
machine() {
  "$script" --tests --list | grep -vxF "$(printf '%s\n' "${@:2}" none)" >"$folder/installed"
  rm -f "$folder/lists" "$folder/failures"
  if [ "$1" = lists ]; then : >"$folder/lists"; fi
}
# run USER_ID SUDO [STARTER...]: leaves the exit code in `code`, apt's notes in one line in `notes`, the output in $folder/out.
run() {
  : >"$folder/notes"
  code=0
  "${@:3}" env -i PATH="$folder/bin" FOLDER="$folder" USER_ID="$1" SUDO="$2" bash "$script" --tests \
    >"$folder/out" 2>&1 </dev/null || code=$?
  notes=$(tr '\n' '|' <"$folder/notes")
}
# A terminal as standard input, and what appears on it as output.
# shellcheck disable=SC2317  # called by run
on_a_terminal() { python3 -c 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))' "$@"; }

machine lists
run 1000 refuses
expect "when everything is there nothing is done, by whomever" "$code $notes" "0 "
expect_output "and it says so" "packages are installed."

machine lists cmake libfmt-dev
run 0 refuses
expect "root installs what is missing, and only that" "$code $notes" "0 self: install cmake libfmt-dev|"
expect_output "it says what each is for" "configures the build"
expect_output "and that it may wait" "(While another package manager is at work this waits, for up to 10 minutes.)"
run 0 refuses
expect "a second time it has nothing to do" "$code $notes" "0 "

machine none cmake
run 0 refuses
expect "absent lists are fetched" "$code $notes" "0 self: update|self: install cmake|"
machine lists cmake
echo "E: 404  Not Found" >"$folder/failures"
run 0 refuses
expect "old lists are fetched again" "$code $notes" "0 self: install cmake|self: update|self: install cmake|"
machine lists cmake
printf '%s\n' "E: no such package" "E: no network" "E: no such package, still" >"$folder/failures"
run 0 refuses
expect "what cannot be installed is a failure" "$code $notes" "1 self: install cmake|self: update|self: install cmake|"
expect_output "with apt's last words" "E: no such package, still"
expect_output "and the names" "apt-get could not install: cmake"
machine none cmake
echo "E: Could not get lock /var/lib/apt/lists/lock" >"$folder/failures"
run 0 refuses
expect "lists that another program holds are waited for" "$code $notes" "0 self: update|self: update|self: install cmake|"

machine lists cmake
run 1000 free
expect "sudo without a password" "$code $notes" "0 sudo: install cmake|"
machine lists cmake
run 1000 asks on_a_terminal
expect "sudo that asks on the terminal" "$code $notes" "0 sudo: install cmake|"
ask="install-deps:   apt-get install --no-install-recommends cmake libfmt-dev"
machine lists cmake libfmt-dev
run 1000 refuses on_a_terminal
expect "sudo that does not serve this account" "$code $notes" "1 "
expect_output "what to ask for" "$ask"
run 1000 asks
expect "sudo that cannot ask" "$code $notes" "1 "
expect_output "what to ask for, again" "$ask"
rm "$folder/bin/sudo"
run 1000 refuses
expect "no sudo" "$code $notes" "1 "
expect_output "what to ask for without sudo" "$ask"

code=0
env -i PATH="$folder/bare" bash "$script" >"$folder/out" 2>&1 || code=$?
expect "a machine without apt" "$code" 1
expect_output "names what is needed" "has no apt; install what these Debian packages hold by its own means: g++ cmake ninja-build"

[ "$failures" -eq 0 ] && echo "install-deps.sh: as expected"
exit "$((failures > 0))"
