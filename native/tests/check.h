#pragma once

#include <cstdio>
#include <cstdlib>

// Ends the test with the place and the text of a claim that does not hold.
#define CHECK(claim)                                                                  \
  do {                                                                                \
    if (!(claim)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #claim); \
      std::exit(1);                                                                   \
    }                                                                                 \
  } while (false)

// Ends the test unless the expression throws the exception type.
#define CHECK_THROWS(expression, exception)                                                  \
  do {                                                                                       \
    bool thrown = false;                                                                     \
    try {                                                                                    \
      expression;                                                                            \
    } catch (const exception&) {                                                             \
      thrown = true;                                                                         \
    }                                                                                        \
    if (!thrown) {                                                                           \
      std::fprintf(stderr, "%s:%d: does not throw " #exception ": %s\n", __FILE__, __LINE__, \
                   #expression);                                                             \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (false)

// Runs a test function and says so.
#define RUN(test)                        \
  do {                                   \
    std::fprintf(stderr, "%s\n", #test); \
    test;                                \
  } while (false)
