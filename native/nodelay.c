/*
 * A library that the fleet loads into a runtime with LD_PRELOAD. The runtime writes the header and the body of a message
 * separately, so Nagle's algorithm would hold each body back by about 40 ms. A connection inherits TCP_NODELAY from the
 * socket that listens, so this `listen` sets it there, and prints a line for the fleet.
 *
 * It uses functions of the C library that the program itself has loaded, so it works with glibc and with musl. It also
 * removes LD_PRELOAD from the environment, so that the programs of agents do not inherit it.
 */
#include <asm/unistd.h>
#include <linux/in.h>
#include <linux/tcp.h>

extern int setsockopt(int, int, int, const void *, unsigned);
extern long syscall(long, ...);
extern int unsetenv(const char *);
extern long write(int, const void *, unsigned long);

static const char LINE[] = "copilotfleet: TCP_NODELAY is set\n";

int listen(int socket, int backlog) {
  const int on = 1;
  if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0) write(2, LINE, sizeof LINE - 1);
  unsetenv("LD_PRELOAD");
  return syscall(__NR_listen, socket, backlog);
}
