#!/usr/bin/env bash
# Makes a relocatable archive of a built program: with the shared libraries that it needs and Open MPI's runtime, without the driver and
# the large CUDA libraries, for nodes where nothing can be installed.
#
#   cluster/bundle.sh PROGRAM OUT.tar.gz [MORE_PROGRAM...]
#
# On the node: tar xf OUT.tar.gz, then lockstep-bundle/bin/lockstep, or lockstep-bundle/bin/mpirun -np 2 lockstep-bundle/bin/lockstep.
# CUDA's libraries are looked for as docs/gpu.md says.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
archive=$(realpath -m "$2")
programs=("$1" "${@:3}")

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
root=$staging/lockstep-bundle
mkdir -p "$root/bin" "$root/lib" "$root/libexec" "$root/openmpi/lib" "$root/openmpi/share" "$root/openmpi/etc"

# What every Linux of glibc brings, and what belongs to the driver or to CUDA.
stays() {
  case "$(basename "$1")" in
    ld-linux*|libc.so.*|libm.so.*|libdl.so.*|libpthread.so.*|librt.so.*|libresolv.so.*|libutil.so.*|linux-vdso*) return 0 ;;
    libcuda.so.*|libcudart*|libcublas*|libcudnn*|libnccl*|libnv*) return 0 ;;
  esac
  return 1
}

copy_libraries_of() {
  local library
  while read -r library; do
    if ! stays "$library" && [ ! -e "$root/lib/$(basename "$library")" ]; then
      cp -L "$library" "$root/lib/"
    fi
  done < <(ldd "$1" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p')
}

# A program runs through a script that tells the loader and Open MPI where they are now.
wrap() {
  local name=$1
  cat >"$root/bin/$name" <<'EOF'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/..
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OPAL_PREFIX="$here/openmpi" OPAL_LIBDIR="$here/openmpi/lib" OPAL_PKGLIBDIR="$here/openmpi/lib/plugins"
export OPAL_BINDIR="$here/bin" OPAL_DATADIR="$here/openmpi/share" OPAL_PKGDATADIR="$here/openmpi/share/openmpi"
export OPAL_SYSCONFDIR="$here/openmpi/etc"
export PMIX_INSTALL_PREFIX="$here/openmpi/pmix" PMIX_PREFIX="$here/openmpi/pmix"
exec "$here/libexec/$(basename "$0")" "$@"
EOF
  chmod +x "$root/bin/$name"
}

for program in "${programs[@]}"; do
  cp "$program" "$root/libexec/"
  copy_libraries_of "$program"
  wrap "$(basename "$program")"
done

# The module of the mpi backend stays beside the program.
library=""
module=$(dirname "${programs[0]}")/liblockstep_mpi.so
if [ -e "$module" ]; then
  cp "$module" "$root/libexec/"
  copy_libraries_of "$module"
  library=$(ldd "$module" | sed -n 's/.*libmpi\.so[^ ]* => \(\/[^ ]*\).*/\1/p')
fi

# Open MPI's own programs and plug-ins, found beside its library.
if [ -n "$library" ] && command -v mpirun >/dev/null; then
  launcher=$(readlink -f "$(command -v mpirun)")
  cp "$launcher" "$root/libexec/mpirun"
  copy_libraries_of "$launcher"
  wrap mpirun
  if command -v orted >/dev/null; then
    cp "$(readlink -f "$(command -v orted)")" "$root/libexec/orted"
    wrap orted
  fi
  plugins=$(ompi_info --parsable --path pkglibdir 2>/dev/null | sed -n 's/^path:pkglibdir://p')
  mkdir -p "$root/openmpi/lib/plugins"
  cp -L "$plugins"/*.so "$root/openmpi/lib/plugins/"
  for plugin in "$root/openmpi/lib/plugins"/*.so; do
    copy_libraries_of "$plugin"
  done
  data=$(ompi_info --parsable --path pkgdatadir 2>/dev/null | sed -n 's/^path:pkgdatadir://p')
  if [ -d "$data" ]; then
    cp -rL "$data" "$root/openmpi/share/openmpi"
  fi
  pmix=$(dirname "$(ldd "$launcher" "$root"/openmpi/lib/plugins/*.so 2>/dev/null | sed -n 's/.*libpmix\.so[^ ]* => \(\/[^ ]*\).*/\1/p' | head -1 | xargs -r readlink -f)")
  if [ -d "$pmix/pmix" ]; then
    mkdir -p "$root/openmpi/pmix/lib"
    cp -rL "$pmix/pmix" "$root/openmpi/pmix/lib/"
  fi
fi

for binary in "$root"/libexec/*; do
  strip "$binary" 2>/dev/null || true
done
mkdir -p "$(dirname "$archive")"
tar -C "$staging" -czf "$archive.partial" lockstep-bundle
mv "$archive.partial" "$archive"
echo "$archive: $(du -h "$archive" | cut -f1)"
