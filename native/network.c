/*
 * Runs a program in a network namespace of its own, which has only a loopback. The PID stays the same. A second process, the
 * bridge, passes connections on between the namespace and the machine. It ends with the program.
 *
 *   copilotfleet-network [OPTION VALUE]... -- PROGRAM [ARGUMENT]...   runs PROGRAM, an absolute path
 *
 *   --port PORT        a connection to 127.0.0.1:PORT of the machine goes on to 127.0.0.1:PORT of the namespace
 *   --sockets FOLDER   a connection to 127.X.Y.Z:3128 of the namespace goes on to the Unix socket X.Y.Z in FOLDER
 *   --egress SOCKET    a connection to 127.0.0.1:3128 goes on to this Unix socket in FOLDER, which first gets a line with the
 *                      launch id: the value of COPILOTFLEET_LAUNCH_ID in the environment
 *   --cgroup FOLDER    the control group in which both processes run
 *
 * The program can also make no sockets of families that know no network namespaces. A virtual machine has such sockets to its
 * host (vsock). What fails ends this program with code 126 and a message.
 *
 * Another program restricts the rest (launcher.c). The bridge stays outside of that, so the program can neither signal it nor
 * look into it.
 */
#include <asm/socket.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/in.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/time_types.h>
#include <linux/un.h>

#define NAME "copilotfleet-network"
#include "program.h"

/* The kernel's headers for programs lack these. */
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define SOCK_STREAM 1
#define SOCK_NONBLOCK O_NONBLOCK
#define SOCK_CLOEXEC O_CLOEXEC
#define MSG_PEEK 0x2
#define MSG_NOSIGNAL 0x4000
#define SHUT_WR 1
#define IFF_UP 0x1

#define WAY_OUT 3128 /* the port in the namespace */
#define BACKLOG 511

static const char *port, *egress;
/* The line for the socket `egress`. */
static char greeting[64];
static word greeting_length;

/* --- The namespace -------------------------------------------------------------------------------------------------- */

static long tcp_socket(void) {
  return call(__NR_socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
}

static struct sockaddr_in address_of(unsigned host, unsigned short at) {
  return (struct sockaddr_in){
      .sin_family = AF_INET, .sin_port = __builtin_bswap16(at), .sin_addr = {__builtin_bswap32(host)}};
}

static void set_option(int descriptor, int level, int option) {
  int on = 1;
  call(__NR_setsockopt, descriptor, level, option, (word)&on, sizeof(on));
}

static int listen_on(unsigned host, unsigned short at) {
  long listener = tcp_socket();
  if (listener < 0) fail("cannot make a socket", 0, listener);
  set_option(listener, SOL_SOCKET, SO_REUSEADDR);
  struct sockaddr_in address = address_of(host, at);
  long error = call(__NR_bind, listener, (word)&address, sizeof(address), 0, 0);
  if (error == 0) error = call(__NR_listen, listener, BACKLOG, 0, 0, 0);
  /* The fleet looks for these words, which the runtime prints, too. Then it takes the next port. */
  if (error == -EADDRINUSE) fail("address already in use", 0, 0);
  if (error < 0) fail("cannot listen", 0, error);
  return listener;
}

static void write_file(const char *path, const char *text) {
  long file = call(__NR_openat, AT_FDCWD, (word)path, O_WRONLY | O_CLOEXEC, 0, 0);
  long error = file < 0 ? file : call(__NR_write, file, (word)text, length(text), 0, 0);
  if (error < 0) fail("cannot write", path, error);
  call(__NR_close, file, 0, 0, 0, 0);
}

/* Every user and group is the same as outside. */
static void map_ids(const char *path, u64 id) {
  char text[64];
  char *at = append_number(text, id);
  *at++ = ' ';
  at = append_number(at, id);
  *at++ = ' ';
  *append_number(at, 1) = 0;
  write_file(path, text);
}

static void enter_namespace(void) {
  const long user = call(__NR_geteuid, 0, 0, 0, 0, 0), group = call(__NR_getegid, 0, 0, 0, 0, 0);
  /* Root stays in the user namespace of the machine, because in another one it could not use files of other users. */
  long error = call(__NR_unshare, CLONE_NEWNET | (user == 0 ? 0 : CLONE_NEWUSER), 0, 0, 0, 0);
  if (error < 0) fail("the kernel, or a filter around the fleet, refuses a network namespace", 0, error);
  if (user != 0) {
    map_ids("/proc/self/uid_map", user);
    write_file("/proc/self/setgroups", "deny");
    map_ids("/proc/self/gid_map", group);
  }
  struct {
    char name[16];
    short flags;
    char rest[22];
  } interface = {.name = "lo", .flags = IFF_UP};
  const long any = tcp_socket();
  error = any < 0 ? any : call(__NR_ioctl, any, SIOCSIFFLAGS, (word)&interface, 0, 0);
  if (error < 0) fail("cannot start the loopback of the network namespace", 0, error);
  call(__NR_close, any, 0, 0, 0, 0);
}

/* --- Filters of system calls ------------------------------------------------------------------------------------------ */

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, field))
#define JUMP(test, value, yes, no) BPF_JUMP(BPF_JMP | BPF_##test | BPF_K, value, yes, no)
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, action)

static void restrict_calls(const struct sock_filter *filter, unsigned short size) {
  struct sock_fprog program = {.len = size, .filter = (struct sock_filter *)filter};
  long error = call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (error == 0) error = call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, (word)&program, 0, 0);
  if (error < 0) fail("the kernel refuses the filter of system calls", 0, error);
}

/* Each number at the end of a jump counts the lines to skip. */
static void allow_only_families_with_namespaces(void) {
  static const struct sock_filter filter[] = {
      LOAD(arch),
      JUMP(JEQ, OWN_ARCHITECTURE, 1, 0),
      RETURN(SECCOMP_RET_ERRNO | ENOSYS),
      LOAD(nr),
#if defined(__x86_64__)
      JUMP(JGE, 0x40000000, 0, 1), /* the x32 numbers */
      RETURN(SECCOMP_RET_ERRNO | ENOSYS),
#endif
      JUMP(JEQ, __NR_socket, 0, 6),
      LOAD(args[0]),
      JUMP(JEQ, AF_UNIX, 4, 0),
      JUMP(JEQ, AF_INET, 3, 0),
      JUMP(JEQ, AF_INET6, 2, 0),
      JUMP(JEQ, AF_NETLINK, 1, 0),
      RETURN(SECCOMP_RET_ERRNO | EAFNOSUPPORT),
      RETURN(SECCOMP_RET_ALLOW),
  };
  restrict_calls(filter, COUNT(filter));
}

/* All that the bridge does. Any other call ends it. */
static const unsigned short CALLS_OF_BRIDGE[] = {
    __NR_accept4, __NR_close,      __NR_connect, __NR_exit_group, __NR_getsockname, __NR_ppoll, __NR_recvfrom,
    __NR_sendto,  __NR_setsockopt, __NR_shutdown, __NR_socket,    __NR_write,       __NR_restart_syscall,
};

static void restrict_bridge(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
  long error = call(__NR_capset, (word)&header, (word)none, 0, 0, 0);
  if (error < 0) fail("cannot drop the capabilities of the bridge", 0, error);
  static struct sock_filter filter[2 * COUNT(CALLS_OF_BRIDGE) + 5];
  unsigned short at = 0;
#define ADD(...) filter[at++] = (struct sock_filter)__VA_ARGS__
  ADD(LOAD(arch));
  ADD(JUMP(JEQ, OWN_ARCHITECTURE, 1, 0));
  ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
  ADD(LOAD(nr));
  for (word index = 0; index < COUNT(CALLS_OF_BRIDGE); index++) {
    ADD(JUMP(JEQ, CALLS_OF_BRIDGE[index], 0, 1));
    ADD(RETURN(SECCOMP_RET_ALLOW));
  }
  ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
  restrict_calls(filter, at);
}

/* --- The bridge ------------------------------------------------------------------------------------------------------- */

/* Its descriptors. All others are connections. The listeners are here, on the machine and in the namespace. */
enum { OUTSIDE, INSIDE, MESSAGES, PARENT, READY, FIRST_FREE };

/* Each way has a number of connections of its own. */
enum { IN, OUT, WAYS };
#define MOST 512
#define FEWEST_DESCRIPTORS 16

/*
 * Two sockets: of the client and of its target. Data that one side does not take stays in the kernel's buffer of the other
 * side, which then gets no more. So the bridge keeps no data, and a slow connection only slows down itself.
 */
struct connection {
  int ends[2]; /* Client 0: not in use. Target -1: cannot take the connection yet. */
  /* The direction that begins at this end. */
  enum { READING, WRITING, ENDED } state[2];
  /* Whether anything has come from this end yet. */
  char has_sent[2];
  u64 number; /* ascending */
};
enum { CLIENT, TARGET };

static struct connection connections[WAYS * MOST];
/* How many connections each way can have. */
static int most;

static int way_of(const struct connection *connection) {
  return (connection - connections) % WAYS;
}

static void end(struct connection *connection) {
  for (int side = 0; side < 2; side++) call(__NR_close, connection->ends[side], 0, 0, 0, 0);
  *connection = (struct connection){0};
}

static void copy(struct connection *connection, int side) {
  static char data[64 * 1024];
  const int from = connection->ends[side], to = connection->ends[!side];
  long size = call(__NR_recvfrom, from, (word)data, sizeof(data), MSG_PEEK, 0);
  if (size > 0) connection->has_sent[side] = 1;
  /*
   * A target that has sent nothing may not even have accepted the connection, which then fills the queue that all servers
   * share. So it keeps its place until the target ends it.
   */
  const int is_gone = size < 0 && size != -EAGAIN && side == CLIENT && !connection->has_sent[TARGET];
  if (size == 0 || (is_gone && way_of(connection) == OUT)) {
    connection->state[side] = ENDED;
    if (connection->state[!side] == ENDED) end(connection);
    else call(__NR_shutdown, to, SHUT_WR, 0, 0, 0);
    return;
  }
  long sent = size < 0 ? size : call(__NR_sendto, to, (word)data, size, MSG_NOSIGNAL, 0);
  if (sent > 0) sent = call(__NR_recvfrom, from, (word)data, sent, 0, 0);
  if (sent < 0 && sent != -EAGAIN) return end(connection);
  connection->state[side] = size > 0 && sent == -EAGAIN ? WRITING : READING;
}

/* The events that matter at one end of a connection. */
static short events_at(const struct connection *connection, int side) {
  return (connection->state[side] == READING ? POLLIN : 0) | (connection->state[!side] == WRITING ? POLLOUT : 0);
}

static void proceed(struct connection *connection, const struct pollfd *polled) {
  for (int side = 0; side < 2 && connection->ends[CLIENT] != 0; side++) {
    const int state = connection->state[side];
    if (state == READING ? polled[side].revents : state == WRITING ? polled[!side].revents : 0) copy(connection, side);
  }
}

static long connect_in(void) {
  const long target = tcp_socket();
  if (target < 0) return target;
  set_option(target, IPPROTO_TCP, TCP_NODELAY);
  const struct sockaddr_in address = address_of(INADDR_LOOPBACK, number(port, 0, 0));
  call(__NR_connect, target, (word)&address, sizeof(address), 0, 0);
  return target;
}

/* The address to which the client has connected chooses the socket. EAGAIN: the queue of its listener is full. */
static long connect_out(int client) {
  struct sockaddr_in chosen;
  unsigned size = sizeof(chosen);
  long error = call(__NR_getsockname, client, (word)&chosen, (word)&size, 0, 0);
  if (error < 0) return error;
  const unsigned host = __builtin_bswap32(chosen.sin_addr.s_addr);
  const int is_egress = host == INADDR_LOOPBACK;
  if (host >> 24 != INADDR_LOOPBACK >> 24 || (is_egress && egress == 0)) return -EACCES;
  static struct sockaddr_un address;
  address.sun_family = AF_UNIX;
  char *at = address.sun_path;
  if (is_egress) {
    for (const char *from = egress; (*at++ = *from) != 0; from++);
  } else {
    at = append_number(at, host >> 16 & 0xff);
    *at++ = '.';
    at = append_number(at, host >> 8 & 0xff);
    *at++ = '.';
    *append_number(at, host & 0xff) = 0;
  }
  const long target = call(__NR_socket, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
  if (target < 0) return target;
  error = call(__NR_connect, target, (word)&address, sizeof(address), 0, 0);
  if (error == 0 && is_egress) {
    const long sent = call(__NR_sendto, target, (word)greeting, greeting_length, MSG_NOSIGNAL, 0);
    if (sent != (long)greeting_length) error = -EPIPE;
  }
  if (error == 0) return target;
  call(__NR_close, target, 0, 0, 0, 0);
  return error;
}

/* Whether clients wait for a target whose queue was full. */
static int is_waiting;

static void try_again(void) {
  is_waiting = 0;
  for (int index = OUT; index < WAYS * most; index += WAYS) {
    struct connection *connection = &connections[index];
    if (connection->ends[TARGET] >= 0) continue;
    char byte;
    long target = call(__NR_recvfrom, connection->ends[CLIENT], (word)&byte, 1, MSG_PEEK, 0);
    /* Without an error, the client is still there. */
    if (target >= 0 || target == -EAGAIN) target = connect_out(connection->ends[CLIENT]);
    if (target >= 0) connection->ends[TARGET] = target;
    else if (target == -EAGAIN) is_waiting = 1;
    else end(connection);
  }
}

/*
 * An unused place. If the machine has taken all of its places: the place of the oldest client that has sent nothing yet. So
 * silent connections cannot cut off the program.
 */
static struct connection *place_for(int way) {
  struct connection *oldest = 0;
  for (int index = way; index < WAYS * most; index += WAYS) {
    struct connection *at = &connections[index];
    if (at->ends[CLIENT] == 0) return at;
    if (way == IN && !at->has_sent[CLIENT] && (oldest == 0 || at->number < oldest->number)) oldest = at;
  }
  return oldest;
}

/* Returns whether descriptors or memory are missing. */
static int accept_on(int listener, int way) {
  struct connection *place = place_for(way);
  if (place == 0) return 0;
  const long client = call(__NR_accept4, listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (client < 0) return client != -EAGAIN && client != -ECONNABORTED;
  set_option(client, IPPROTO_TCP, TCP_NODELAY);
  const long target = way == IN ? connect_in() : connect_out(client);
  if (target < 0 && target != -EAGAIN) {
    call(__NR_close, client, 0, 0, 0, 0);
    return 0;
  }
  static u64 accepted;
  if (place->ends[CLIENT] != 0) end(place);
  *place = (struct connection){.ends = {client, target < 0 ? -1 : target}, .number = accepted++};
  is_waiting |= target < 0;
  return 0;
}

static void pass_on(void) {
  static struct pollfd polled[FIRST_FREE + 2 * WAYS * MOST];
  /* The kernel subtracts the time for which it waited. */
  struct __kernel_timespec rest = {0};
  for (int is_short = 0;;) {
    if (rest.tv_nsec == 0) {
      try_again();
      rest.tv_nsec = 100 * 1000 * 1000;
    }
    polled[PARENT] = (struct pollfd){.fd = PARENT, .events = POLLIN};
    polled[OUTSIDE] = (struct pollfd){.fd = is_short || place_for(IN) == 0 ? -1 : OUTSIDE, .events = POLLIN};
    polled[INSIDE] = (struct pollfd){.fd = is_short || place_for(OUT) == 0 ? -1 : INSIDE, .events = POLLIN};
    int used = 0;
    for (int index = 0; index < WAYS * MOST; index++) {
      if (connections[index].ends[CLIENT] != 0) used = index + 1;
    }
    for (int index = 0; index < used * 2; index++) {
      const struct connection *connection = &connections[index / 2];
      const short events = events_at(connection, index % 2);
      /* The kernel reports errors even if no event was asked for, again and again. */
      const int is_awaited = connection->ends[CLIENT] != 0 && connection->ends[TARGET] >= 0 && events != 0;
      polled[FIRST_FREE + index] =
          (struct pollfd){.fd = is_awaited ? connection->ends[index % 2] : -1, .events = events};
    }
    call(__NR_ppoll, (word)polled, FIRST_FREE + 2 * used, is_short || is_waiting ? (word)&rest : 0, 0, 0);
    if (polled[PARENT].revents != 0) leave(0);
    for (int index = 0; index < used; index++) proceed(&connections[index], &polled[FIRST_FREE + 2 * index]);
    is_short = polled[OUTSIDE].revents != 0 && accept_on(OUTSIDE, IN);
    if (polled[INSIDE].revents != 0) is_short |= accept_on(INSIDE, OUT);
  }
}

/* Each connection needs two descriptors. */
static void allow_descriptors(void) {
  struct rlimit64 limit;
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, (word)&limit, 0);
  limit.rlim_cur = limit.rlim_max;
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, (word)&limit, 0, 0);
  const u64 fitting = limit.rlim_max < FEWEST_DESCRIPTORS ? 0 : (limit.rlim_max - FEWEST_DESCRIPTORS) / (WAYS * 2);
  most = fitting < MOST ? fitting : MOST;
}

/* Never returns. */
static void run_bridge(int outside, int inside, int parent, int ready, const char *sockets) {
  long error = call(__NR_chdir, (word)sockets, 0, 0, 0, 0);
  if (error < 0) fail("cannot enter", sockets, error);
  /* A signal to the group of the program does not reach the bridge. */
  call(__NR_setpgid, 0, 0, 0, 0, 0);
  allow_descriptors();
  /* The kernel gave these numbers in ascending order, so none is overwritten before it has moved. */
  const int moved[][2] = {{outside, OUTSIDE}, {inside, INSIDE}, {parent, PARENT}, {ready, READY}};
  for (word index = 0; index < COUNT(moved); index++) {
    error = call(__NR_dup3, moved[index][0], moved[index][1], O_CLOEXEC, 0, 0);
    if (error < 0) fail("cannot move a descriptor", 0, error);
  }
  call(__NR_close_range, FIRST_FREE, ~0U, 0, 0, 0);
  restrict_bridge();
  call(__NR_write, READY, (word) "", 1, 0, 0);
  call(__NR_close, READY, 0, 0, 0, 0);
  call(__NR_close, MESSAGES, 0, 0, 0, 0);
  pass_on();
}

/* Returns when the bridge works. */
static void start_bridge(int outside, int inside, const char *sockets) {
  int ready[2];
  long error = call(__NR_pipe2, (word)ready, O_CLOEXEC, 0, 0, 0);
  if (error < 0) fail("cannot make a pipe", 0, error);
  const long parent = call(__NR_pidfd_open, call(__NR_getpid, 0, 0, 0, 0, 0), 0, 0, 0, 0);
  if (parent < 0) fail("cannot watch this process", 0, parent);
  const long bridge = call(__NR_clone, SIGCHLD, 0, 0, 0, 0);
  if (bridge < 0) fail("cannot start the bridge", 0, bridge);
  if (bridge == 0) run_bridge(outside, inside, parent, ready[1], sockets);
  call(__NR_close, ready[1], 0, 0, 0, 0);
  char byte;
  if (call(__NR_read, ready[0], (word)&byte, 1, 0, 0) != 1) leave(126);
}

/* --- The program ------------------------------------------------------------------------------------------------------ */

static void prepare_greeting(char **environment) {
  const char *name = "COPILOTFLEET_LAUNCH_ID=";
  for (; *environment != 0; environment++) {
    const char *value = *environment;
    const char *at = name;
    while (*at != 0 && *at == *value) at++, value++;
    if (*at != 0) continue;
    while (*value != 0 && greeting_length < sizeof(greeting) - 1) greeting[greeting_length++] = *value++;
    greeting[greeting_length++] = '\n';
    return;
  }
  fail("the environment has no", "COPILOTFLEET_LAUNCH_ID", 0);
}

__attribute__((used)) static void run(word *stack) {
  char **arguments = (char **)(stack + 1);
  char **environment = arguments + stack[0] + 1;
  const char *sockets = 0;
  char **at = arguments + 1;
  for (; *at != 0 && !same(*at, "--"); at += 2) {
    const char *value = at[1];
    if (value == 0) fail("no value for", *at, 0);
    if (same(*at, "--port")) port = value;
    else if (same(*at, "--sockets")) sockets = value;
    else if (same(*at, "--egress")) egress = value;
    else if (same(*at, "--cgroup")) join_group(value);
    else fail("unknown option", *at, 0);
  }
  if (*at == 0 || at[1] == 0) fail("no program", 0, 0);
  if (port == 0 || sockets == 0) fail("--port and --sockets are needed", 0, 0);
  if (egress != 0 && length(egress) >= UNIX_PATH_MAX) fail("too long a name:", egress, 0);
  /* Wrong arguments give EINVAL where the call exists. */
  need("pidfd_open", call(__NR_pidfd_open, 0, 0, 0, 0, 0));
  need("close_range", call(__NR_close_range, 1, 0, 0, 0, 0));

  if (egress != 0) prepare_greeting(environment);
  const int outside = listen_on(INADDR_LOOPBACK, number(port, 0, 0));
  enter_namespace();
  start_bridge(outside, listen_on(INADDR_ANY, WAY_OUT), sockets);
  allow_only_families_with_namespaces();
  const long error = call(__NR_execve, (word)at[1], (word)(at + 1), (word)environment, 0, 0);
  fail("cannot run", at[1], error);
}
