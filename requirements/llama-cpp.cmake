# Read by the build of llama-cpp-python (CMAKE_PROJECT_INCLUDE): only the library, which is a third of the compilation.
# Left out is llama.cpp's `common`, which serves its command-line tools. What chooses and builds graphs is compiled with
# little optimisation; the kernels, where the time of a model goes, with all of it.
if(PROJECT_NAME STREQUAL "llama_cpp")
  set(LLAMA_BUILD_COMMON OFF)
elseif(PROJECT_NAME STREQUAL "llama.cpp")
  cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
endif()
