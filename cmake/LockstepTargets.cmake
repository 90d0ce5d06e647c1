# How every target of the project is built, and the functions that modules and tests are declared with.

add_library(lockstep_flags INTERFACE)
# -ffp-contract=off: a fused multiply-add where the compiler likes one would make results depend on its mood. Kernels ask
# for FMA by name (Highway's MulAdd).
set(cxx_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror)
target_compile_options(lockstep_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:${cxx_warnings}> $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off>)
# nvcc's own host code is not pedantic. Constexpr functions may be used in kernels, which fmt 9 needs to be told.
target_compile_options(lockstep_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra;-Werror=all-warnings;-DFMT_USE_CONSTEXPR=1>")
# GCC 12 sees overlapping copies in "literal" + std::to_string(n) that are not there (its bug 105329, mended in 13).
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(lockstep_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Wno-restrict>)
endif()
target_include_directories(lockstep_flags INTERFACE ${PROJECT_SOURCE_DIR})
if(LOCKSTEP_SANITIZE)
  target_compile_options(lockstep_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${LOCKSTEP_SANITIZE};-fno-omit-frame-pointer>")
  target_link_options(lockstep_flags INTERFACE -fsanitize=${LOCKSTEP_SANITIZE})
endif()

# Test sources are compiled for a fast build: what they test is compiled as it is shipped.
add_library(lockstep_test_flags INTERFACE)
target_compile_options(lockstep_test_flags INTERFACE $<$<CONFIG:Release>:-O0>)

# Headers from elsewhere that most sources include, compiled once for the modules and once for all tests: this halves the time of a
# clean build. No source relies on it: the sanitizer presets build without.
set(common_headers <fmt/format.h> <nlohmann/json.hpp> <algorithm> <filesystem> <fstream> <functional> <map> <memory> <optional>
                   <span> <string> <thread> <vector>)
if(LOCKSTEP_PRECOMPILE_HEADERS AND LOCKSTEP_WITH_TESTS)
  file(WRITE ${CMAKE_BINARY_DIR}/test_headers.cpp "")
  add_library(lockstep_test_headers OBJECT ${CMAKE_BINARY_DIR}/test_headers.cpp)
  target_link_libraries(lockstep_test_headers PRIVATE lockstep_flags lockstep_test_flags fmt::fmt GTest::gtest GTest::gmock)
  target_precompile_headers(lockstep_test_headers PRIVATE ${common_headers} <gmock/gmock.h> <gtest/gtest.h>)
endif()
function(lockstep_use_test_headers target)
  if(LOCKSTEP_PRECOMPILE_HEADERS)
    target_precompile_headers(${target} REUSE_FROM lockstep_test_headers)
  endif()
endfunction()

# What is linked into the program and into the module of the mpi backend (comm/mpi/module.h) fits both. With hidden symbols this costs
# the program nothing.
function(lockstep_compile_as_module target)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endfunction()

# lockstep_module(NAME SOURCES... DEPENDS... [OPENMP]): the static library lockstep_NAME.
function(lockstep_module name)
  cmake_parse_arguments(arg "OPENMP" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  add_library(lockstep_${name} STATIC ${arg_SOURCES})
  target_link_libraries(lockstep_${name} PUBLIC lockstep_flags ${arg_DEPENDS} PRIVATE ${arg_PRIVATE_DEPENDS})
  lockstep_compile_as_module(lockstep_${name})
  if(LOCKSTEP_PRECOMPILE_HEADERS)
    if(name STREQUAL base)
      target_precompile_headers(lockstep_${name} PRIVATE ${common_headers})
    elseif(NOT arg_OPENMP)  # whose flag makes other precompiled headers
      target_precompile_headers(lockstep_${name} REUSE_FROM lockstep_base)
    endif()
  endif()
endfunction()

# lockstep_test(NAME SOURCES... DEPENDS... [TIMEOUT seconds] [TOGETHER]): a GoogleTest program; each of its tests is one CTest test,
# or with TOGETHER the whole program is, since its tests share a set-up that takes seconds.
function(lockstep_test name)
  cmake_parse_arguments(arg "TOGETHER" "TIMEOUT" "SOURCES;DEPENDS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_DEPENDS} lockstep_test_flags GTest::gtest_main GTest::gmock)
  lockstep_use_test_headers(${name})
  if(arg_TOGETHER)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} COST 100)
  else()
    gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT ${arg_TIMEOUT})
  endif()
endfunction()

# lockstep_mpi_test(NAME SOURCES... DEPENDS... RANKS 1 2 4 [TIMEOUT seconds]): a GoogleTest program with a main() of its own
# (tests/support/mpi_main.cpp), started by mpirun once for each rank count, oversubscribed.
function(lockstep_mpi_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPENDS;RANKS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 180)
  endif()
  add_executable(${name} ${arg_SOURCES} ${PROJECT_SOURCE_DIR}/tests/support/mpi_main.cpp)
  target_link_libraries(${name} PRIVATE ${arg_DEPENDS} lockstep_test_flags GTest::gtest GTest::gmock)
  add_dependencies(${name} lockstep_mpi)
  lockstep_use_test_headers(${name})
  foreach(ranks IN LISTS arg_RANKS)
    add_test(NAME ${name}.ranks_${ranks} COMMAND ${PROJECT_SOURCE_DIR}/tests/support/mpirun.sh ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.ranks_${ranks} PROPERTIES TIMEOUT ${arg_TIMEOUT} PROCESSORS 2)
  endforeach()
endfunction()

# lockstep_fuzzer(NAME SOURCE DEPENDS...): a libFuzzer program, built when LOCKSTEP_WITH_FUZZERS is on.
function(lockstep_fuzzer name source)
  cmake_parse_arguments(arg "" "" "DEPENDS" ${ARGN})
  if(LOCKSTEP_WITH_FUZZERS)
    add_executable(${name} ${source})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name} PRIVATE ${arg_DEPENDS})
  endif()
endfunction()
