#!/usr/bin/env python3
"""Fails when an #include goes against the arrows of docs/design.md, or a library's header leaves its place.

  include_arrows.py ROOT         checks every source below ROOT
  include_arrows.py --self-test  checks that the rules catch what they are for
"""

import re
import sys
from pathlib import Path

MAY_INCLUDE = {
    "base": {"base"},
    "ops": {"ops", "base"},
    "comm": {"comm", "base"},
    "data": {"data", "base"},
    "trainer": {"trainer", "ops", "comm", "data", "base"},
    "launcher": {"launcher", "trainer", "ops", "comm", "data", "base"},
}

# What a header is, and the paths that may include it: only a folder or a file named after the library.
KEPT_IN_PLACE = [
    ("MPI", re.compile(r"mpi\.h$"), re.compile(r"^comm/mpi/|^tests/(comm|support)/([^/]*/)*mpi[^/]*$")),
    ("HDF5", re.compile(r"(hdf5|H5[A-Za-z]*)\.h$"), re.compile(r"(^|/)hdf5[^/]*(/|$)")),
    ("Asio", re.compile(r"boost/asio"), re.compile(r"^(comm|launcher)/([^/]*/)*(asio|control|server)[^/]*(/|$)")),
    ("NCCL", re.compile(r"nccl[^/]*\.h$"), re.compile(r"(^|/)nccl[^/]*(/|$)")),
    ("CUDA", re.compile(r"^(cuda|cublas|cudnn)[^/]*\.h$"), re.compile(r"(^|/)cuda[^/]*(/|$)|(^|/)nccl[^/]*(/|$)")),
    ("yaml-cpp", re.compile(r"^yaml-cpp/"), re.compile(r"^(trainer/config[^/]*|launcher/llama_factory/[^/]*)\.cpp$")),
    ("CLI11", re.compile(r"^CLI/"), re.compile(r"^(tests/)?launcher/.*\.cpp$")),
]

# Slow to compile: not in a header that others build upon (one that other headers include).
NOT_IN_HEADERS = re.compile(r"^(nlohmann/json\.hpp|CLI/|spdlog/|yaml-cpp/)")

# Which card nvcc compiles for at the moment is not one.
BACKEND_CHOICE = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*(LOCKSTEP_WITH|LOCKSTEP_HAVE|CUDA(?!_ARCH__)|NCCL|HAVE_MPI|HDF5)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def complaints(path, text, exists, built_upon):
    """What is wrong with the source `path` (relative to the root); `exists` tells whether a path is a file, `built_upon`
    whether other headers include it."""
    module = path.split("/")[0]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if BACKEND_CHOICE.match(line):
            found.append(f"{path}:{number}: a backend is chosen by #if; CMake picks a twin file instead")
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, target = match.group(1) == '"', match.group(2)
        other = target.split("/")[0]
        if other in MAY_INCLUDE and module in MAY_INCLUDE and other not in MAY_INCLUDE[module]:
            found.append(f"{path}:{number}: {module} includes {target}; it may include {', '.join(sorted(MAY_INCLUDE[module]))}")
        if module in MAY_INCLUDE and other == "tests":
            found.append(f"{path}:{number}: {module} includes {target}; tests are not part of the program")
        beside = module == "tests" and exists(f"{path.rpartition('/')[0]}/{target}")
        if quoted and not exists(target) and not beside:
            found.append(f'{path}:{number}: "{target}" is no file; paths begin at the root of the repository')
        for library, header, places in KEPT_IN_PLACE:
            if not quoted and header.search(target) and not places.search(path):
                found.append(f"{path}:{number}: {target} is {library}'s and stays where its name says")
        if path.endswith(".h") and NOT_IN_HEADERS.match(target) and built_upon(path):
            found.append(f"{path}:{number}: {target} in a header that headers include slows builds down")
    return found


def check_tree(root):
    texts = {}
    for folder in [*MAY_INCLUDE, "tests"]:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCES:
                texts[path.relative_to(root).as_posix()] = path.read_text()
    included_by_headers = set()
    for path, text in texts.items():
        if path.endswith(".h"):
            included_by_headers.update(match.group(2) for match in map(INCLUDE.match, text.splitlines()) if match)
    found = []
    for path, text in texts.items():
        found += complaints(path, text, lambda target: (root / target).is_file(), included_by_headers.__contains__)
    return found, len(texts)


def self_test():
    def count(path, text):
        return len(complaints(path, text, lambda target: target != "ops/missing.h", lambda _: True))

    bad = [
        ("base/log.cpp", '#include "ops/tensor.h"'),
        ("ops/tensor.h", '#include "comm/communicator.h"'),
        ("comm/work.h", '#include "data/dataset.h"'),
        ("data/dataset.h", '#include "trainer/config.h"'),
        ("trainer/step.cpp", '#include "launcher/signals.h"'),
        ("trainer/step.cpp", '#include "tests/support/temporary_folder.h"'),
        ("trainer/step.cpp", '#include "ops/missing.h"'),
        ("comm/communicator.h", "#include <mpi.h>"),
        ("trainer/step.cpp", "  #  include <mpi.h>"),
        ("data/dataset.cpp", "#include <hdf5.h>"),
        ("trainer/step.cpp", "#include <yaml-cpp/yaml.h>"),
        ("trainer/config.h", "#include <yaml-cpp/yaml.h>"),
        ("trainer/step.h", "#include <nlohmann/json.hpp>"),
        ("ops/backend.cpp", "#include <cuda_runtime.h>"),
        ("ops/backend.cpp", "#ifdef LOCKSTEP_WITH_CUDA"),
        ("ops/backend.cpp", "#if defined(__CUDACC__)"),
    ]
    good = [
        ("trainer/step.cpp", '#include "ops/tensor.h"\n#include "comm/communicator.h"\n#include <vector>'),
        ("comm/mpi/communicator.cpp", "#include <mpi.h>"),
        ("data/hdf5_file.cpp", "#include <hdf5.h>"),
        ("ops/cuda/gemm.cu", "#include <cublasLt.h>"),
        ("ops/cuda/card.cuh", "#ifdef __CUDA_ARCH__"),
        ("trainer/config_yaml.cpp", "#include <yaml-cpp/yaml.h>"),
        ("trainer/step.h", "#include <nlohmann/json_fwd.hpp>"),
        ("tests/base/log_test.cpp", '#include "tests/support/captured_log.h"'),
        ("tests/ops/norm_test.cpp", '#include "harness.h"'),
    ]
    wrong = [case for case in bad if count(*case) == 0] + [case for case in good if count(*case) != 0]
    for path, text in wrong:
        print(f"self-test: wrong verdict on {path}: {text}")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    found, files = check_tree(Path(sys.argv[1]))
    print("\n".join(found))
    print(f"{files} files, {len(found)} wrong includes")
    return 1 if found or files == 0 else 0


sys.exit(main())
